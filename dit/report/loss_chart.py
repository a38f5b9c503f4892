"""The chart of training losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dit.console import Cell
from dit.console.formatting import format_count, format_number
from dit.report.axes import padded
from dit.report.labels import Label, place_right
from dit.report.style import Chart, dash, short_name, size_hue
from dit.report.svg import chart_axes, log_axis, step_axis, to_svg
from dit.study.variants import VARIANTS

SETTLED = 0.1
"""Share of the training after which losses are in the chart's range: the fall before it would flatten the rest."""


def training_losses(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Chart:
    """Training loss over steps, a line per variant; the range of the y axis is that after the first fall."""
    figure, axes = chart_axes("Training steps", "Loss (mse + vb)")
    last = max(step for curve in curves.values() for step, _ in curve)
    settled = [value for curve in curves.values() for step, value in curve if step >= SETTLED * last]
    step_axis(axes, last)
    log_axis(axes, "y", padded(settled, 0.06, 0.12))
    ends: list[Label] = []
    rows: list[list[Cell]] = []
    marks = [share * last for share in (0.1, 0.25, 0.5, 0.75, 1.0)]
    for name, curve in curves.items():
        spec = VARIANTS[name]
        axes.plot(*zip(*curve, strict=True), color=size_hue(spec), linestyle=dash(spec), linewidth=1.5)
        ends.append(Label(short_name(spec), curve[-1], size_hue(spec)))
        rows.append([name, *(_nearest(curve, mark) for mark in marks)])
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


def _nearest(curve: Sequence[tuple[float, float]], step: float) -> float:
    """The loss at the point nearest to this step."""
    return min(curve, key=lambda point: abs(point[0] - step))[1]
