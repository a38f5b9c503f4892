"""Forecasts of a value that falls with training, and how good earlier forecasts of the same run were. Torch-free.

    forecast(points, 1500)             # from the points so far
    forecast_checkpoints(points, 3000) # from a few measured checkpoints
    track_record(points)               # what the same rule forecast earlier, beside what came

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

FITTED_FROM = 0.1
"""Share of the steps so far after which points are fitted: earlier ones have another slope."""
MEASURED_FROM = 0.9
"""Share of the steps so far after which points are averaged: what a forecast is compared with."""
SHARES = (0.25, 0.5, 0.75)
"""Shares of a run after which earlier forecasts are looked at."""
LARGEST_MISS = 0.1
"""Relative error of an earlier forecast above which there is no further one."""
FEWEST_CHECKPOINTS = 3
"""A law has two parameters; the third tests it."""
_FEWEST_POINTS = 4


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """value = factor x step^exponent."""

    factor: float
    exponent: float

    def at(self, step: float) -> float:
        """The value at a step."""
        return self.factor * math.pow(step, self.exponent)


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
    """Of earlier forecasts of the same run that reached as far."""
    reason: str = ""


def power_law(points: Points) -> PowerLaw | None:
    """The least-squares line in logarithms through the points; None with fewer than two different steps."""
    usable = [(step, value) for step, value in points if step > 0 and value > 0 and math.isfinite(value)]
    steps, values = (np.log([point[i] for point in usable]) for i in (0, 1))
    if len(set(steps.tolist())) < 2:
        return None
    centred = steps - steps.mean()
    exponent = float(centred @ values / (centred @ centred))
    return PowerLaw(math.exp(float(values.mean()) - exponent * float(steps.mean())), exponent)


def forecast(points: Points, step: float) -> Forecast:
    """The value at a later step, from the law of the points so far.

    There is none if an earlier forecast of the same run, which reached as far or less far, missed by more than
    `LARGEST_MISS`, or if none reached as far.
    """
    record = track_record(points)
    law = _fitted(points, points[-1][0]) if points else None
    if law is None or not record:
        return Forecast(None, record, "too few points")
    reach = points[-1][0] / step
    if reach < min(SHARES):
        return Forecast(None, (), f"step {step:,.0f} is more than {1 / min(SHARES):g} times as far")
    # Floor to the nearest share that was tested: a longer reach is never taken for a shorter one.
    tested = max(share for share in SHARES if share <= reach)
    return _checked(law.at(step), tuple(miss for miss in record if miss.share >= tested))


def forecast_checkpoints(points: Points, step: float) -> Forecast:
    """Like `forecast`, from the few checkpoints that are measured: those before the last must forecast the last.

    It is tested as far as the last checkpoint is from the one before.
    """
    before, law = power_law(points[:-1]), power_law(points)
    if before is None or law is None:
        return Forecast(None, (), f"fewer than {FEWEST_CHECKPOINTS} checkpoints")
    last, measured = points[-1]
    return _checked(law.at(step), (Miss(points[-2][0] / last, before.at(last), measured),))


def track_record(points: Points) -> tuple[Miss, ...]:
    """What the rule forecast after each of `SHARES` of the points' steps, beside the mean of the last of them.

    Shares with too few points are left out.
    """
    if len(points) < _FEWEST_POINTS:
        return ()
    last = points[-1][0]
    end = np.log([point for point in points if point[0] >= MEASURED_FROM * last]).mean(axis=0)
    middle, measured = math.exp(end[0]), math.exp(end[1])
    laws = ((share, _fitted([point for point in points if point[0] <= share * last], share * last)) for share in SHARES)
    return tuple(Miss(share, law.at(middle), measured) for share, law in laws if law is not None)


def _checked(value: float, misses: tuple[Miss, ...]) -> Forecast:
    worst = max(misses, key=lambda miss: abs(miss.error))
    if abs(worst.error) > LARGEST_MISS:
        return Forecast(None, misses, f"back-test missed by {abs(worst.error):.0%}")
    return Forecast(value, misses)


def _fitted(points: Points, last: float) -> PowerLaw | None:
    """The law of the points after `FITTED_FROM` of the steps until `last`."""
    used = [point for point in points if point[0] >= FITTED_FROM * last]
    return power_law(used) if len(used) >= _FEWEST_POINTS else None
