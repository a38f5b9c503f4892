"""Logarithmic axes of the report's charts: ranges with room for labels, readable ticks, one layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

Figure = dict[str, Any]
Range = tuple[float, float]
"""Ends of an axis, as log10."""

NARROW = 0.5
"""On shorter axes (in decades) plotly's own ticks are better to read."""
_FACTORS: tuple[tuple[float, Sequence[int]], ...] = ((3.5, (1,)), (1.4, (1, 3)), (0.9, (1, 2, 5)), (0, (1, 2, 3, 5, 7)))
"""(Fewest decades on the axis, ticks in each decade)."""
PLOT_HEIGHT = 330
"""Pixels between the y axis' ends."""


def padded(values: Iterable[float], below: float, above: float) -> Range:
    """Range of the finite positive values, extended at both ends by these shares of its length."""
    logs = [math.log10(value) for value in values if value > 0 and math.isfinite(value)] or [0.0]
    span = max(max(logs) - min(logs), 0.1)
    return min(logs) - below * span, max(logs) + above * span


def log_layout(x_title: str, y_title: str, x_range: Range, y_range: Range) -> Figure:
    """Layout with two logarithmic axes on a transparent background."""
    axis = {
        "type": "log",
        "gridcolor": "@grid",
        "linecolor": "@axis",
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "tickcolor": "@axis",
        "fixedrange": False,
        "automargin": True,
        "tickangle": 0,
        "minor": {"showgrid": False},
    }
    return {
        "height": PLOT_HEIGHT + 110,
        "margin": {"l": 56, "r": 24, "t": 44, "b": 52},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "@ink"},
        "hoverlabel": {"bgcolor": "@surface", "bordercolor": "@axis", "font": {"color": "@ink"}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        "xaxis": axis | {"title": {"text": x_title, "standoff": 8}, "range": list(x_range)} | log_ticks(x_range),
        "yaxis": axis | {"title": {"text": y_title, "standoff": 8}, "range": list(y_range)} | log_ticks(y_range),
    }


def log_ticks(span: Range) -> Figure:
    """Ticks at powers of ten, and at more multiples of them the shorter the axis is."""
    decades = span[1] - span[0]
    if decades < NARROW:
        return {"nticks": 5}
    factors = next(factors for fewest, factors in _FACTORS if decades > fewest)
    ticks = [
        factor * 10.0**power
        for power in range(math.floor(span[0]), math.ceil(span[1]) + 1)
        for factor in factors
        if span[0] <= math.log10(factor * 10.0**power) <= span[1]
    ]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [short(tick) for tick in ticks]}


def step_ticks(steps: Sequence[int]) -> Figure:
    """A tick at each of these training steps."""
    return {"tickmode": "array", "tickvals": list(steps), "ticktext": [short(step) for step in steps]}


def short(value: float) -> str:
    """A number as `20k` or `1.5M`."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{prefix}"
    return f"{value:.4g}"
