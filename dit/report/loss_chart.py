"""Charts of trainings: their losses, and their losses beside the bounds of the dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from dit.console import Cell
from dit.console.formatting import format_count, format_number
from dit.health.summary import RATIOS
from dit.report.axes import padded
from dit.report.labels import Label, place_right
from dit.report.style import Chart, dash, short_name, size_hue
from dit.report.svg import chart_axes, colour, log_axis, step_axis, to_svg
from dit.report.tables import Table
from dit.study.runs import split_name
from dit.study.variants import VARIANTS

SETTLED = 0.1
"""Share of the training after which losses are in the chart's range: the fall before it would flatten the rest."""
Curves = Mapping[str, Sequence[tuple[float, float]]]
"""Run -> points (step, value)."""
_LINES = "Colours are model sizes; a solid line is patch 2, a dashed one patch 4, a dotted one patch 8."
_KNOWS = {RATIOS[0]: "each channel's variance", RATIOS[1]: "the variance of each spatial frequency"}


def training_losses(curves: Curves) -> Chart:
    """Training loss over steps, a line per run; the range of the y axis is that after the first fall."""
    figure, axes = chart_axes("Training steps", "Loss (mse + vb)")
    last = _last(curves)
    settled = [value for curve in curves.values() for step, value in curve if step >= SETTLED * last]
    step_axis(axes, last)
    log_axis(axes, "y", padded(settled, 0.06, 0.12))
    _draw(axes, curves)
    return Chart(
        "losses",
        "Training loss",
        f"Smoothed. {_LINES} The fall of the first {SETTLED:.0%} is cut off.",
        to_svg(figure, "Training loss over steps", _description(curves), "losses"),
        _values(curves, [share * last for share in (0.1, 0.25, 0.5, 0.75, 1.0)]),
    )


def loss_ratios(key: str, curves: Curves) -> Chart:
    """One of `RATIOS` over steps: a training's squared noise error over that of the best linear denoiser."""
    name = "R_a" if key == RATIOS[0] else "R_b"
    figure, axes = chart_axes("Training steps", f"{name}: error over the bound")
    last, first = _last(curves), min(step for curve in curves.values() for step, _ in curve)
    log_axis(axes, "x", padded([first, last], 0.0, 0.14))
    log_axis(axes, "y", padded([1.0, *(value for curve in curves.values() for _, value in curve)], 0.06, 0.12))
    axes.hlines(1.0, first, last, color=colour("axis"), linewidth=1.2, linestyles=(0, (2, 2)))
    _draw(axes, curves)
    title = f"{name} over training"
    return Chart(
        name.lower().replace("_", "-"),
        title,
        f"Squared error of the predicted noise over that of the best linear denoiser that knows {_KNOWS[key]}, at the"
        f" same timesteps. Below 1, the dotted line, the model knows more. {_LINES}",
        to_svg(figure, title, _description(curves), name.lower().replace("_", "-")),
        _values(curves, sorted({max(first, share * last) for share in (0.01, 0.03, 0.1, 0.3, 1.0)})),
    )


def _last(curves: Curves) -> float:
    return max(step for curve in curves.values() for step, _ in curve)


def _draw(axes: Axes, curves: Curves) -> None:
    """Draw a line per run, thinner where a variant has several, and label each variant's first."""
    specs = {name: VARIANTS[split_name(name)[0]] for name in curves}
    ends: dict[str, Label] = {}
    for name, curve in curves.items():
        spec = specs[name]
        width = 1.5 if list(specs.values()).count(spec) == 1 else 0.8
        axes.plot(*zip(*curve, strict=True), color=size_hue(spec), linestyle=dash(spec), linewidth=width)
        ends.setdefault(spec.name, Label(short_name(spec), curve[-1], size_hue(spec)))
    place_right(axes, list(ends.values()))


def _kind(curves: Curves) -> str:
    """What a line is: a variant, or one of its runs."""
    return "variant" if all(split_name(name)[1] is None for name in curves) else "run"


def _description(curves: Curves) -> str:
    ends = "; ".join(f"{name} {format_number(curve[-1][1])}" for name, curve in curves.items())
    return f"A line per {_kind(curves)}. At the end: {ends}."


def _values(curves: Curves, marks: Sequence[float]) -> Table:
    """Columns and rows: each line's values at the points nearest to these steps."""
    rows: list[list[Cell]] = [
        [name, *(min(curve, key=lambda point: abs(point[0] - mark))[1] for mark in marks)]
        for name, curve in curves.items()
    ]
    return [_kind(curves).title(), *(f"Step {format_count(round(mark))}" for mark in marks)], rows
