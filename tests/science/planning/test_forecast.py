"""Forecasts: a power law is found again, a curve that is none is refused by its own back-test."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dit.planning.forecast import LARGEST_MISS, forecast, forecast_checkpoints, power_law, track_record

STEPS = range(20, 1520, 20)


def test_a_power_law_is_recovered_and_forecast() -> None:
    noise = np.random.default_rng(0).standard_normal(len(STEPS))
    points = [(step, 2.0 * step**-0.2 * math.exp(0.01 * z)) for step, z in zip(STEPS, noise, strict=True)]
    law = power_law(points)
    assert law is not None
    assert (law.factor, law.exponent) == (pytest.approx(2.0, rel=0.05), pytest.approx(-0.2, abs=0.01))
    for ahead in (1500, 3000, 6000):
        made = forecast(points, ahead)
        assert made.value == pytest.approx(2.0 * ahead**-0.2, rel=0.05)
    assert [miss.share for miss in track_record(points)] == [0.25, 0.5, 0.75]
    assert max(abs(miss.error) for miss in track_record(points)) < 0.05


def test_a_plateau_that_ends_late_is_refused_by_the_back_test() -> None:
    # As the Fréchet distance of the digits: nothing, until the classes are learned.
    points = [(step, 50.0 if step < 900 else 50.0 * (step / 900) ** -4) for step in STEPS]
    made = forecast(points, 3000)
    assert made.value is None
    worst = max(abs(miss.error) for miss in made.misses)
    assert worst > LARGEST_MISS
    assert made.reason == f"back-test missed by {worst:.0%}"


def test_a_forecast_is_judged_by_earlier_ones_that_reached_as_far() -> None:
    # A kink after a quarter of the run: forecasts from there missed, later ones did not.
    points = [(step, 50.0 if step < 375 else 50.0 * (step / 375) ** -0.3) for step in STEPS]
    assert forecast(points, 2000).value == pytest.approx(50 * (2000 / 375) ** -0.3, rel=0.1)
    assert "back-test missed" in forecast(points, 6000).reason


def test_a_step_further_than_any_that_was_tested_is_refused() -> None:
    points = [(step, step**-0.2) for step in STEPS]
    assert forecast(points, 6001).value is None
    assert "more than 4 times as far" in forecast(points, 6001).reason


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_run_that_has_hardly_begun_has_no_forecast(count: int) -> None:
    made = forecast([(step, 1 / step) for step in list(STEPS)[:count]], 1500)
    assert (made.value, made.reason) == (None, "too few points")


def test_checkpoints_are_forecast_only_where_those_before_the_last_forecast_it() -> None:
    law = [(step, 1000 * step**-0.6) for step in (50_000, 100_000, 200_000)]
    assert forecast_checkpoints(law, 400_000).value == pytest.approx(1000 * 400_000**-0.6)
    flat = [*law[:2], (200_000, 2 * law[2][1])]
    assert forecast_checkpoints(flat, 400_000).reason == "back-test missed by 50%"
    assert forecast_checkpoints(law[:2], 400_000).reason == "fewer than 3 checkpoints"
