"""The report's charts: inline SVG, with a text of what is drawn and a table of the values.

A patch size has the same colour and a model size the same marker in all charts of a metric. In the chart of losses, a
size has the same colour and a patch size the same dash. Lines and points are also labelled, so that the charts can be
read without colours.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup
from matplotlib.axes import Axes

from dit.claims.metric_names import interval, metric_name
from dit.claims.results import Results
from dit.claims.verdicts import primary
from dit.console import Cell
from dit.console.formatting import format_count, format_number
from dit.report.axes import Range, padded
from dit.report.labels import Label, place, place_right
from dit.report.svg import FONT, chart_axes, colour, log_axis, step_axis, to_svg
from dit.report.tables import Table
from dit.study.paper import on_imagenet, paper
from dit.study.records import Estimate
from dit.study.variants import VARIANTS, ModelSpec

PAPER_STEP = 400_000
HUES = 5
"""Number of colours `hue-0`, `hue-1`, ... of the page."""
SETTLED = 0.1
"""Share of the training after which losses are in the chart's range: the fall before it would flatten the rest."""
_MARKERS = (("o", 6.0), ("s", 5.5), ("D", 5.5), ("^", 6.5), ("p", 6.5), ("*", 8.0))
"""(Marker, size in points) of each model size from the smallest on."""
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
"""Line style of each patch size from the finest on."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure with its heading, caption and values."""

    id: str
    title: str
    caption: str
    svg: Markup
    values: Table


@dataclass(frozen=True, slots=True)
class Predictor:
    """The x axis of a chart; `field` is its name in records, in the paper's data and in claim 3."""

    field: Literal["gflops", "parameters"]
    heading: str
    title: str


GFLOPS = Predictor("gflops", "Against compute", "Gflops of one forward pass")
PARAMETERS = Predictor("parameters", "Against parameters", "Parameters")


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """A variant's point in a chart."""

    spec: ModelSpec
    x: float
    estimate: Estimate

    @property
    def label(self) -> str:
        """The variant without its family."""
        return _short_name(self.spec)

    @property
    def bar(self) -> list[tuple[float, float]]:
        """Ends of the error bar."""
        return [(self.x, self.estimate.low), (self.x, self.estimate.high)]


def charts(results: Results, losses: Mapping[str, Sequence[tuple[float, float]]]) -> list[Chart]:
    """All charts of a report; `losses` are smoothed points (step, loss) by variant, and may be empty."""
    drawn = [against(results, GFLOPS), against(results, PARAMETERS), over_steps(results)]
    return [*drawn, training_losses(losses)] if losses else drawn


def against(results: Results, predictor: Predictor) -> Chart:
    """The metric at the verdict's step, a line per patch size, with the fit of claim 3."""
    metric = metric_name(results.verdict.metric)
    figure, axes = chart_axes(predictor.title, metric)
    points = [
        ChartPoint(variant.spec, float(getattr(record, predictor.field)), primary(record))
        for variant, record in results.last()
    ]
    published = _published(results, predictor)
    x_range = padded([*(point.x for point in points), *published.values()], 0.08, 0.1)
    fids = [paper().models[name].fid_400k for name in published]
    log_axis(axes, "x", x_range)
    log_axis(axes, "y", _y_range([point.estimate for point in points], fids))
    lines = [point.bar for point in points]
    for patch, row in _by_patch(points).items():
        lines.append(_line(axes, row, f"patch {patch}"))
    fit = results.verdict.claims[2].numbers.get(predictor.field)
    if fit:
        ends = [10**edge for edge in x_range]
        heights = [math.exp(fit["intercept"] + fit["slope"] * math.log(x)) for x in ends]
        axes.plot(ends, heights, color=colour("muted"), linewidth=1, dashes=(6, 4), label=f"fit, R² {fit['r2']:.3f}")
        lines.append(list(zip(ends, heights, strict=True)))
    _published_points(axes, published)
    _legend(axes)
    place(axes, [_label(point) for point in points], lines)
    return Chart(
        predictor.field,
        predictor.heading,
        _against_caption(results, predictor, bool(fit), bool(published)),
        to_svg(figure, f"{metric} {predictor.heading.lower()}", _told(points, predictor.field), predictor.field),
        _against_values(points, predictor, metric),
    )


def over_steps(results: Results) -> Chart:
    """The metric of every checkpoint over training steps, a line per variant."""
    metric = metric_name(results.verdict.metric)
    figure, axes = chart_axes("Training steps", metric)
    steps = results.config.evaluation.at_steps
    curves = _published_curves(results, until=steps[-1])
    log_axis(axes, "x", padded(steps, 0.05, 0.16), [float(step) for step in steps])
    values = [value for curve in curves.values() for value in curve.values()]
    log_axis(axes, "y", _y_range([primary(record) for _, record in results.rows()], values))
    ends = []
    for variant in results.variants:
        points = [ChartPoint(variant.spec, float(record.step), primary(record)) for record in variant.metrics]
        _line(axes, points, "")
        ends.append(points[-1])
    for name, curve in curves.items():
        _open_line(axes, [name] * len(curve), list(curve), list(curve.values()), f"paper, {name}")
    if curves:
        _legend(axes)
    place_right(axes, [_label(point) for point in ends])
    rows: list[list[Cell]] = [
        [variant.spec.name, *(interval(primary(record)) for record in variant.metrics)] for variant in results.variants
    ]
    beside = " Open markers are the paper's curves; their evaluator gives values about 6 % lower." if curves else ""
    last = "; ".join(f"{point.spec.name} {interval(point.estimate)}" for point in ends)
    return Chart(
        "steps",
        "Over training",
        f"Every evaluated checkpoint. Colours are patch sizes, markers model sizes.{beside}",
        to_svg(figure, f"{metric} over training steps", f"A line per variant. At step {steps[-1]:,}: {last}.", "steps"),
        (["Variant", *(f"Step {format_count(step)}" for step in steps)], rows),
    )


def training_losses(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Chart:
    """Training loss over steps, a line per variant; the range of the y axis is that after the first fall."""
    figure, axes = chart_axes("Training steps", "Loss (mse + vb)")
    last = max(step for curve in curves.values() for step, _ in curve)
    settled = [value for curve in curves.values() for step, value in curve if step >= SETTLED * last]
    step_axis(axes, last)
    log_axis(axes, "y", padded(settled, 0.06, 0.12))
    ends, rows = [], []
    marks = [share * last for share in (0.1, 0.25, 0.5, 0.75, 1.0)]
    for name, curve in curves.items():
        spec = VARIANTS[name]
        hue, dash = _size_hue(spec), _DASHES[spec.patch_index % len(_DASHES)]
        axes.plot(*zip(*curve, strict=True), color=hue, linestyle=dash, linewidth=1.5)
        ends.append(Label(_short_name(spec), curve[-1], hue))
        row: list[Cell] = [name]
        rows.append([*row, *(min(curve, key=lambda point, mark=mark: abs(point[0] - mark))[1] for mark in marks)])
    place_right(axes, ends)
    told = "; ".join(f"{name} {format_number(curve[-1][1])}" for name, curve in curves.items())
    return Chart(
        "losses",
        "Training loss",
        "Smoothed. Colours are model sizes; a solid line is patch 2, a dashed one patch 4, a dotted one patch 8."
        f" The fall of the first {SETTLED:.0%} is cut off.",
        to_svg(figure, "Training loss over steps", f"A line per variant. At the end: {told}.", "losses"),
        (["Variant", *(f"Step {format_count(round(mark))}" for mark in marks)], rows),
    )


def _against_caption(results: Results, predictor: Predictor, has_fit: bool, has_paper: bool) -> str:
    fit = " The dashed line is the fit of claim 3." if has_fit else ""
    if predictor is PARAMETERS:
        return f"The same points. One size at several patches has nearly equal parameters, but different values.{fit}"
    beside = f" Open markers are the paper's values at {format_count(PAPER_STEP)} steps." if has_paper else ""
    step = format_count(results.verdict.step)
    return f"At step {step}. Bars are the intervals in the table below. Markers are model sizes.{fit}{beside}"


def _against_values(points: Sequence[ChartPoint], predictor: Predictor, metric: str) -> Table:
    rows: list[list[Cell]] = [
        [point.spec.name, int(point.x) if predictor is PARAMETERS else point.x, interval(point.estimate)]
        for point in points
    ]
    return ["Variant", predictor.title, metric], rows


def _told(points: Sequence[ChartPoint], field: str) -> str:
    """What the chart draws, for readers who do not see it."""
    each = [f"{point.spec.name} {interval(point.estimate)} at {point.x:.4g} {field}" for point in points]
    return f"A point with its interval per variant, joined by patch size: {'; '.join(each)}."


def _by_patch(points: Iterable[ChartPoint]) -> dict[int, list[ChartPoint]]:
    rows: dict[int, list[ChartPoint]] = defaultdict(list)
    for point in sorted(points, key=lambda point: point.x):
        rows[point.spec.patch].append(point)
    return dict(sorted(rows.items()))


def _short_name(spec: ModelSpec) -> str:
    return f"{spec.size}/{spec.patch}"


def _hue(spec: ModelSpec) -> str:
    return colour(f"hue-{spec.patch_index % HUES}")


def _size_hue(spec: ModelSpec) -> str:
    return colour(f"hue-{spec.size_index % HUES}")


def _marker(spec: ModelSpec) -> tuple[str, float]:
    return _MARKERS[spec.size_index % len(_MARKERS)]


def _label(point: ChartPoint) -> Label:
    return Label(point.label, (point.x, point.estimate.value), _hue(point.spec))


def _line(axes: Axes, points: Sequence[ChartPoint], name: str) -> list[tuple[float, float]]:
    """Draw points with error bars, joined by a line, in the colour of their patch size; the line."""
    hue = _hue(points[0].spec)
    x, y = [point.x for point in points], [point.estimate.value for point in points]
    axes.plot(x, y, color=hue, linewidth=1.5, label=name or "_")
    for point in points:
        value, low, high = point.estimate.value, point.estimate.low, point.estimate.high
        marker, size = _marker(point.spec)
        axes.errorbar(
            [point.x],
            [value],
            yerr=[[max(value - low, 0.0)], [max(high - value, 0.0)]],
            color=hue,
            marker=marker,
            markersize=size,
            markeredgecolor=colour("surface"),
            markeredgewidth=0.8,
            elinewidth=1.1,
            capsize=2.5,
            label="_",
        )
    return list(zip(x, y, strict=True))


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.03, 0.99),
        ncols=3,
        columnspacing=1.2,
        handlelength=1.8,
        frameon=False,
        fontsize=FONT - 1,
    )


def _published(results: Results, predictor: Predictor) -> dict[str, float]:
    """The paper's variants and their x, in ascending order; none for a study that is not the paper's."""
    if not on_imagenet(results.config):
        return {}
    places = {name: float(getattr(model, predictor.field)) for name, model in paper().models.items()}
    return dict(sorted(places.items(), key=lambda item: item[1]))


def _published_points(axes: Axes, published: Mapping[str, float]) -> None:
    by_patch: dict[int, list[str]] = defaultdict(list)
    for name in published:
        by_patch[VARIANTS[name].patch].append(name)
    for patch, names in sorted(by_patch.items()):
        fids = [paper().models[name].fid_400k for name in names]
        _open_line(axes, names, [published[name] for name in names], fids, f"paper, patch {patch}")


def _published_curves(results: Results, until: int) -> dict[str, dict[int, float]]:
    if not on_imagenet(results.config):
        return {}
    curves = {name: {step: v for step, v in curve.items() if step <= until} for name, curve in paper().curves.items()}
    return {name: curve for name, curve in curves.items() if curve}


def _open_line(axes: Axes, names: Sequence[str], x: Sequence[float], y: Sequence[float], title: str) -> None:
    """Draw the paper's numbers: open markers on a dotted line."""
    hue = _hue(VARIANTS[names[0]])
    axes.plot(x, y, color=hue, linewidth=0.8, linestyle=":", label=title)
    for name, at, value in zip(names, x, y, strict=True):
        marker, size = _marker(VARIANTS[name])
        axes.plot([at], [value], color=hue, marker=marker, markersize=size, markerfacecolor="none", label="_")


def _y_range(estimates: Iterable[Estimate], others: Iterable[float]) -> Range:
    edges = [edge for estimate in estimates for edge in (estimate.low, estimate.value, estimate.high)]
    return padded([*edges, *others], 0.08, 0.1)
