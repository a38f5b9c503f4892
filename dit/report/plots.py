"""The report's charts as plotly figures in plain data; colours are names such as `@hue-0` that the page resolves.

A patch size has the same colour and a model size the same marker in every chart. Points are also labelled, so that the
charts can be read without colours.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dit.claims.metric_names import interval, metric_name
from dit.claims.results import Results
from dit.claims.verdicts import primary
from dit.console.formatting import format_count, format_number
from dit.report.axes import PLOT_HEIGHT, Figure, Range, log_layout, padded, step_ticks
from dit.study.paper import paper
from dit.study.records import Estimate
from dit.study.variants import VARIANTS, ModelSpec

PAPER_STEP = 400_000
LABEL_HEIGHT = 15
HUES = 5
"""Number of colours `@hue-0`, `@hue-1`, ... in report.css.j2, one per patch size from the finest on."""
_MARKERS = (("circle", 10), ("square", 10), ("diamond", 12), ("triangle-up", 13), ("pentagon", 12), ("star", 13))
"""(Symbol, size) for each model size from the smallest on; the sizes give the symbols similar areas."""
_DASHES = ("dot", "dash", "dashdot", "longdash", "longdashdot")
"""Line styles of all model sizes but the largest, whose line is solid."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """The x axis of a chart; `field` is its name in records, in the paper's data and in claim 3."""

    field: Literal["gflops", "parameters"]
    title: str
    spread_labels: bool
    """Place labels of every second patch size below left, because models of different patches can have nearly equal x
    and y."""


GFLOPS = Predictor("gflops", "Gflops of one forward pass", spread_labels=True)
PARAMETERS = Predictor("parameters", "Parameters", spread_labels=False)


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """A variant's point in a chart."""

    spec: ModelSpec
    x: float
    x_text: str
    """x as text, for the label at the pointer."""
    estimate: Estimate

    @property
    def label(self) -> str:
        """The variant without its family."""
        return f"{self.spec.size}/{self.spec.patch}"


def is_imagenet(results: Results) -> bool:
    """Whether the study has the paper's dataset, metric and models, so that its values can be shown beside ours."""
    dataset = results.config.dataset
    named = dataset.name.startswith("imagenet") or dataset.classes == 1000
    return named and results.verdict.metric == "fid" and any(spec.family == "DiT" for spec in results.config.specs)


def against(results: Results, predictor: Predictor) -> Figure:
    """The metric at the verdict's step, a trace per patch size, with the fit of claim 3."""
    by_patch: dict[int, list[ChartPoint]] = defaultdict(list)
    for variant, record in results.last():
        x = float(getattr(record, predictor.field))
        x_text = f"{format_number(x) if predictor.field == 'gflops' else format_count(int(x))} {predictor.field}"
        by_patch[variant.spec.patch].append(ChartPoint(variant.spec, x, x_text, primary(record)))
    traces = []
    for patch, row in sorted(by_patch.items()):
        trace = _line(sorted(row, key=lambda point: point.x), f"patch {patch}")
        position = "bottom left" if predictor.spread_labels and row[0].spec.patch_index % 2 else "top right"
        traces.append(trace | {"mode": "lines+markers+text", "textposition": position})
    published = _published(results, predictor)
    points = [point for row in by_patch.values() for point in row]
    x_range = padded([point.x for point in points] + list(published.values()), 0.08, 0.14)
    y_range = _y_range([point.estimate for point in points], [paper().models[name].fid_400k for name in published])
    if fit := results.verdict.claims[2].numbers.get(predictor.field):
        traces.append(_fit_line([10**edge for edge in x_range], fit))
    traces += _published_points(published, predictor)
    return {
        "data": traces,
        "layout": log_layout(predictor.title, metric_name(results.verdict.metric), x_range, y_range),
    }


def over_steps(results: Results) -> Figure:
    """The metric of every checkpoint over training steps, a line per variant."""
    traces, ends = [], []
    for variant in results.variants:
        points = [
            ChartPoint(variant.spec, record.step, f"step {format_count(record.step)}", primary(record))
            for record in variant.metrics
        ]
        traces.append(_line(points, variant.spec.name) | {"showlegend": False})
        ends.append(points[-1])
    steps = results.config.evaluation.at_steps
    curves = _published_curves(results, until=steps[-1])
    for name, curve in curves.items():
        places = [f"step {format_count(step)}, about" for step in curve]
        traces.append(_open_trace([name] * len(curve), f"paper, {name}", list(curve), list(curve.values()), places))
    values = [value for curve in curves.values() for value in curve.values()]
    y_range = _y_range([primary(record) for _, record in results.rows()], values)
    layout = log_layout("Training steps", metric_name(results.verdict.metric), padded(steps, 0.05, 0.14), y_range)
    layout["xaxis"] |= step_ticks(steps)
    layout["annotations"] = end_labels(ends, y_range)
    layout["margin"]["t"] = 44 if curves else 12  # room for a legend
    return {"data": traces, "layout": layout}


def losses(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Training loss over steps, a line per variant."""
    traces = []
    for name, curve in curves.items():
        spec = VARIANTS[name]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": [step for step, _ in curve],
                "y": [value for _, value in curve],
                "line": {"color": _hue(spec), "width": 1.8, "dash": _dash(spec)},
                "hovertemplate": f"<b>{name}</b><br>step %{{x:,.0f}}<br>loss %{{y:.4f}}<extra></extra>",
            }
        )
    values = [value for curve in curves.values() for _, value in curve]
    steps = [step for curve in curves.values() for step, _ in curve]
    layout = log_layout("Training steps", "Loss (mse + vb)", padded(steps, 0, 0.02), padded(values, 0.04, 0.04))
    return {"data": traces, "layout": layout}


def _hue(spec: ModelSpec) -> str:
    return f"@hue-{spec.patch_index % HUES}"


def _marker(spec: ModelSpec) -> tuple[str, int]:
    return _MARKERS[spec.size_index % len(_MARKERS)]


def _dash(spec: ModelSpec) -> str:
    return "solid" if spec.size_share == 1 else _DASHES[spec.size_index % len(_DASHES)]


def _line(points: Sequence[ChartPoint], name: str) -> Figure:
    """A trace with error bars in the colour of its first point's patch size."""
    colour = _hue(points[0].spec)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "cliponaxis": False,
        "name": name,
        "x": [point.x for point in points],
        "y": [point.estimate.value for point in points],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [point.estimate.high - point.estimate.value for point in points],
            "arrayminus": [point.estimate.value - point.estimate.low for point in points],
            "color": colour,
            "thickness": 1.5,
            "width": 5,
        },
        "text": [point.label for point in points],
        "textfont": {"color": colour, "size": 12.5},
        "marker": {
            "symbol": [_marker(point.spec)[0] for point in points],
            "size": [_marker(point.spec)[1] for point in points],
            "color": colour,
            "line": {"color": "@surface", "width": 1.5},
            "opacity": 1,
        },
        "line": {"color": colour, "width": 2},
        "customdata": [[point.spec.name, point.x_text, interval(point.estimate)] for point in points],
        "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
    }


def _fit_line(ends: list[float], fit: Mapping[str, float]) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"fit, R² {fit['r2']:.3f}",
        "x": ends,
        "y": [math.exp(fit["intercept"] + fit["slope"] * math.log(x)) for x in ends],
        "line": {"color": "@muted", "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
    }


def _published(results: Results, predictor: Predictor) -> dict[str, float]:
    """The paper's variants and their x, in ascending order; none for a study that is not the paper's."""
    if not is_imagenet(results):
        return {}
    places = {name: float(getattr(model, predictor.field)) for name, model in paper().models.items()}
    return dict(sorted(places.items(), key=lambda item: item[1]))


def _published_points(published: Mapping[str, float], predictor: Predictor) -> list[Figure]:
    by_patch: dict[int, list[str]] = defaultdict(list)
    for name in published:
        by_patch[VARIANTS[name].patch].append(name)
    models = paper().models
    return [
        _open_trace(
            names,
            f"paper, patch {patch}",
            [published[name] for name in names],
            [models[name].fid_400k for name in names],
            [f"{published[name]:,g} {predictor.field}, step {format_count(PAPER_STEP)}" for name in names],
        )
        for patch, names in sorted(by_patch.items())
    ]


def _published_curves(results: Results, until: int) -> dict[str, dict[int, float]]:
    if not is_imagenet(results):
        return {}
    curves = {name: {step: v for step, v in curve.items() if step <= until} for name, curve in paper().curves.items()}
    return {name: curve for name, curve in curves.items() if curve}


def _open_trace(
    names: Sequence[str], title: str, x: Sequence[float], y: Sequence[float], places: Sequence[str]
) -> Figure:
    """The paper's numbers: open markers on a dotted line."""
    colour = _hue(VARIANTS[names[0]])
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": title,
        "x": list(x),
        "y": list(y),
        "marker": {
            "symbol": [f"{_marker(VARIANTS[name])[0]}-open" for name in names],
            "size": [_marker(VARIANTS[name])[1] for name in names],
            "color": colour,
        },
        "line": {"color": colour, "width": 1, "dash": "dot"},
        "customdata": [list(row) for row in zip(names, places, strict=True)],
        "hovertemplate": "<b>%{customdata[0]}</b>, paper<br>%{customdata[1]}<br>FID %{y:.2f}<extra></extra>",
    }


def _y_range(estimates: Iterable[Estimate], others: Iterable[float]) -> Range:
    edges = [edge for estimate in estimates for edge in (estimate.low, estimate.value, estimate.high)]
    return padded([*edges, *others], 0.08, 0.1)


def end_labels(ends: Sequence[ChartPoint], y_range: Range) -> list[dict[str, Any]]:
    """A label right of every line's end, moved up if it would cover the label below."""
    scale = PLOT_HEIGHT / (y_range[1] - y_range[0])
    labels: list[dict[str, Any]] = []
    floor = -math.inf
    for point in sorted(ends, key=lambda point: point.estimate.value):
        if not (math.isfinite(point.estimate.value) and point.estimate.value > 0):
            continue
        natural = math.log10(point.estimate.value) * scale
        placed = max(natural, floor)
        floor = placed + LABEL_HEIGHT
        labels.append(
            {
                "x": math.log10(point.x),
                "y": natural / scale,
                "text": point.label,
                "xanchor": "left",
                "xshift": 9,
                "yshift": placed - natural,
                "showarrow": False,
                "font": {"color": _hue(point.spec), "size": 12.5},
            }
        )
    return labels
