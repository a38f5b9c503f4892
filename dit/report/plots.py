"""The charts of the metric: inline SVG, with a text of what is drawn and a table of the values.

A patch size has the same colour and a model size the same marker in all of them. Lines and points are also labelled, so
that the charts can be read without colours.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes

from dit.claims.judged import primary
from dit.claims.metric_names import interval, metric_name
from dit.claims.results import Results
from dit.console import Cell
from dit.console.formatting import format_count
from dit.report.axes import Range, padded
from dit.report.labels import Label, place, place_right
from dit.report.style import Chart, hue, marker, short_name
from dit.report.svg import FONT, FRAME, LEGEND_ROW, chart_axes, colour, log_axis, to_svg
from dit.report.tables import Table
from dit.study.paper import on_imagenet, paper
from dit.study.records import Estimate, MetricsRecord
from dit.study.variants import VARIANTS, ModelSpec, resolve

PAPER_STEP = 400_000
LEGEND_COLUMNS = 3


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
        return short_name(self.spec)

    @property
    def bar(self) -> list[tuple[float, float]]:
        """Ends of the error bar."""
        return [(self.x, self.estimate.low), (self.x, self.estimate.high)]


def against(results: Results, predictor: Predictor) -> Chart:
    """The metric at the verdict's step, a line per patch size, with the fit of claim 3."""
    metric = metric_name(results.verdict.metric)
    figure, axes = chart_axes(predictor.title, metric)
    points = [
        ChartPoint(resolve(name), float(getattr(record, predictor.field)), results.estimates[name, record.step])
        for name, record in {record.variant: record for _, record in results.last()}.items()
    ]
    runs = [(float(getattr(record, predictor.field)), record) for _, record in results.last()]
    published = _published(results, predictor)
    x_range = padded([*(point.x for point in points), *published.values()], 0.08, 0.14)
    fids = [paper().models[name].fid_400k for name in published]
    log_axis(axes, "x", x_range)
    log_axis(axes, "y", _y_range([point.estimate for point in points], [*fids, *(primary(r).value for _, r in runs)]))
    lines = [point.bar for point in points]
    _runs_behind(axes, runs)
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
    _runs_behind(axes, [(float(record.step), record) for _, record in results.rows()])
    by_variant: dict[str, list[ChartPoint]] = defaultdict(list)
    for (name, step), estimate in sorted(results.estimates.items(), key=lambda item: item[0][1]):
        by_variant[name].append(ChartPoint(resolve(name), float(step), estimate))
    ordered = {record.variant: by_variant[record.variant] for _, record in results.rows()}
    for points in ordered.values():
        _line(axes, points, "")
    ends = [points[-1] for points in ordered.values()]
    for name, curve in curves.items():
        _open_line(axes, [name] * len(curve), list(curve), list(curve.values()), f"paper, {name}")
    if curves:
        _legend(axes)
    place_right(axes, [_label(point) for point in ends])
    rows: list[list[Cell]] = [
        [name, *(interval(point.estimate) for point in points)] for name, points in ordered.items()
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


def _against_caption(results: Results, predictor: Predictor, has_fit: bool, has_paper: bool) -> str:
    fit = " The dashed line is the fit of claim 3." if has_fit else ""
    if predictor is PARAMETERS:
        return f"The same points. One size at several patches has nearly equal parameters, but different values.{fit}"
    beside = f" Open markers are the paper's values at {format_count(PAPER_STEP)} steps." if has_paper else ""
    step = format_count(results.verdict.step)
    runs = " Faint points are single runs." if any(len(own.seeds) > 1 for own in results.verdict.variants) else ""
    return f"At step {step}. Bars are the intervals in the table below. Markers are model sizes.{runs}{fit}{beside}"


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


def _label(point: ChartPoint) -> Label:
    return Label(point.label, (point.x, point.estimate.value), hue(point.spec))


def _line(axes: Axes, points: Sequence[ChartPoint], name: str) -> list[tuple[float, float]]:
    """Draw points with error bars, joined by a line, in the colour of their patch size; the line."""
    own = hue(points[0].spec)
    x, y = [point.x for point in points], [point.estimate.value for point in points]
    axes.plot(x, y, color=own, linewidth=1.5, label=name or "_")
    for point in points:
        value, low, high = point.estimate.value, point.estimate.low, point.estimate.high
        symbol, size = marker(point.spec)
        axes.errorbar(
            [point.x],
            [value],
            yerr=[[max(value - low, 0.0)], [max(high - value, 0.0)]],
            color=own,
            marker=symbol,
            markersize=size,
            markeredgecolor=colour("surface"),
            markeredgewidth=0.8,
            elinewidth=1.1,
            capsize=2.5,
            label="_",
        )
    return list(zip(x, y, strict=True))


def _runs_behind(axes: Axes, runs: Iterable[tuple[float, MetricsRecord]]) -> None:
    """Draw a faint point for each run of a variant that has several, behind the variant's mean."""
    rows: dict[tuple[str, float], list[float]] = defaultdict(list)
    for x, record in runs:
        rows[record.variant, x].append(primary(record).value)
    for (name, x), values in rows.items():
        if len(values) > 1:
            own = hue(resolve(name))
            axes.plot(
                [x] * len(values), values, color=own, marker="o", markersize=3, linestyle="", alpha=0.35, label="_"
            )


def _legend(axes: Axes) -> None:
    rows = -(-len(axes.get_legend_handles_labels()[1]) // LEGEND_COLUMNS)
    left, bottom, width, height = FRAME
    axes.set_position((left, bottom, width, height - (rows - 1) * LEGEND_ROW))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.03, 0.99),
        ncols=LEGEND_COLUMNS,
        columnspacing=1.2,
        handlelength=1.8,
        frameon=False,
        fontsize=FONT - 1,
        labelcolor=colour("ink"),
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
    for number, names in enumerate(row for _, row in sorted(by_patch.items())):
        fids = [paper().models[name].fid_400k for name in names]
        _open_line(axes, names, [published[name] for name in names], fids, "_" if number else "the paper")


def _published_curves(results: Results, until: int) -> dict[str, dict[int, float]]:
    if not on_imagenet(results.config):
        return {}
    curves = {name: {step: v for step, v in curve.items() if step <= until} for name, curve in paper().curves.items()}
    return {name: curve for name, curve in curves.items() if curve}


def _open_line(axes: Axes, names: Sequence[str], x: Sequence[float], y: Sequence[float], title: str) -> None:
    """Draw the paper's numbers: open markers on a dotted line."""
    own = hue(VARIANTS[names[0]])
    axes.plot(x, y, color=own, linewidth=0.8, linestyle=":", label=title)
    for name, at, value in zip(names, x, y, strict=True):
        symbol, size = marker(VARIANTS[name])
        axes.plot([at], [value], color=own, marker=symbol, markersize=size, markerfacecolor="none", label="_")


def _y_range(estimates: Iterable[Estimate], others: Iterable[float]) -> Range:
    edges = [edge for estimate in estimates for edge in (estimate.low, estimate.value, estimate.high)]
    return padded([*edges, *others], 0.08, 0.1)
