"""Logarithmic axes of the report's charts: ranges with room for labels, readable ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Range = tuple[float, float]
"""Ends of an axis, as log10."""

_FACTORS: tuple[Sequence[float], ...] = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 2, 3, 5, 7),
    (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
    tuple(n / 10 for n in (*range(10, 20), *range(20, 100, 2))),
)
"""Ticks in each decade, from the fewest on."""
FEWEST_TICKS = 3


def padded(values: Iterable[float], below: float, above: float) -> Range:
    """Range of the finite positive values, extended at both ends by these shares of its length."""
    logs = [math.log10(value) for value in values if value > 0 and math.isfinite(value)] or [0.0]
    span = max(max(logs) - min(logs), 0.1)
    return min(logs) - below * span, max(logs) + above * span


def log_ticks(span: Range) -> list[float]:
    """Ticks at powers of ten, and at more multiples of them the shorter the axis is."""
    ticks: list[float] = []
    for factors in _FACTORS:
        ticks = [
            factor * 10.0**power
            for power in range(math.floor(span[0]), math.ceil(span[1]) + 1)
            for factor in factors
            if span[0] <= math.log10(factor * 10.0**power) <= span[1]
        ]
        if len(ticks) >= FEWEST_TICKS:
            break
    return ticks


def short(value: float) -> str:
    """A number as `20k` or `1.5M`."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{prefix}"
    return f"{value:.4g}"
