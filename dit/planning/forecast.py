"""Forecasts of a value that falls with training, and how good earlier forecasts of the same run were. Torch-free.

    forecast(points, 1500)  # from the points so far
    track_record(points)    # what the same rule forecast earlier, beside what came

The rule is a power law, value = factor x step^exponent: a line in logarithms (Kaplan et al. 2020, equation 1.5, without
a limit, which is not seen at the steps that are forecast here). A law is used only where it has forecast the run's own
later points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Points = Sequence[tuple[float, float]]
"""(step, value), in the order of the steps."""

FITTED_FROM = 0.3
"""Share of the steps so far after which points are fitted: earlier ones have another slope."""
MEASURED_FROM = 0.9
"""Share of the steps so far after which points are averaged: what a forecast is compared with."""
SHARES = (0.25, 0.5, 0.75)
"""Shares of a run after which earlier forecasts are looked at."""
LARGEST_MISS = 0.1
"""Relative error of an earlier forecast above which there is no further one."""
_FEWEST_POINTS = 4
_FURTHEST = 4.0
"""The furthest step that is forecast, as a multiple of the last point's: the longest that was tested."""


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """value = factor x step^exponent."""

    factor: float
    exponent: float

    def at(self, step: float) -> float:
        """The value at a step."""
        return self.factor * float(step) ** self.exponent


@dataclass(frozen=True, slots=True)
class Miss:
    """An earlier forecast beside what came."""

    share: float
    """Share of the run that it had seen."""
    forecast: float
    measured: float

    @property
    def error(self) -> float:
        """(forecast - measured) / measured."""
        return self.forecast / self.measured - 1


@dataclass(frozen=True, slots=True)
class Forecast:
    """The value at a later step, or the reason why there is none."""

    value: float | None
    misses: tuple[Miss, ...]
    reason: str = ""

    @property
    def worst(self) -> float:
        """The largest relative error of the earlier forecasts; 0 without any."""
        return max((abs(miss.error) for miss in self.misses), default=0.0)


def power_law(points: Points) -> PowerLaw | None:
    """The least-squares line in logarithms through the points; None with fewer than two different steps."""
    usable = [(step, value) for step, value in points if step > 0 and value > 0 and math.isfinite(value)]
    steps, values = (np.log([point[i] for point in usable]) for i in (0, 1))
    if len(set(steps.tolist())) < 2:
        return None
    centred = steps - steps.mean()
    exponent = float(centred @ values / (centred @ centred))
    return PowerLaw(math.exp(float(values.mean()) - exponent * float(steps.mean())), exponent)


def forecast(points: Points, step: float, shares: Sequence[float] = SHARES) -> Forecast:
    """The value at a later step, from the law of the points so far, if it forecast the run's own points well enough."""
    misses = track_record(points, shares)
    law = _fitted(points, points[-1][0]) if points else None
    if law is None or not misses:
        return Forecast(None, misses, "too few points")
    worst = max(misses, key=lambda miss: abs(miss.error))
    if abs(worst.error) > LARGEST_MISS:
        missed = f"back-test from {worst.share:.0%} of the run missed by {abs(worst.error):.0%}"
        return Forecast(None, misses, missed)
    if step > _FURTHEST * points[-1][0]:
        return Forecast(None, misses, f"more than {_FURTHEST:g} times the steps so far")
    return Forecast(law.at(step), misses)


def track_record(points: Points, shares: Sequence[float] = SHARES) -> tuple[Miss, ...]:
    """What the rule forecast after each share of the points' steps, beside the mean of the last of them.

    Shares with too few points are left out.
    """
    if len(points) < _FEWEST_POINTS:
        return ()
    last = points[-1][0]
    end = [(step, value) for step, value in points if step >= MEASURED_FROM * last]
    middle, measured = (math.exp(float(np.log([point[i] for point in end]).mean())) for i in (0, 1))
    misses = []
    for share in shares:
        law = _fitted([point for point in points if point[0] <= share * last], share * last)
        if law is not None:
            misses.append(Miss(share, law.at(middle), measured))
    return tuple(misses)


def _fitted(points: Points, last: float) -> PowerLaw | None:
    """The law of the points after `FITTED_FROM` of the steps until `last`."""
    used = [point for point in points if point[0] >= FITTED_FROM * last]
    return power_law(used) if len(used) >= _FEWEST_POINTS else None
