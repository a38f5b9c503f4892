"""Logarithmic axes: readable ticks for every length, and ranges."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dit.report.axes import log_ticks, padded, short


@given(st.floats(-6, 9), st.floats(0.11, 9))
def test_every_axis_has_a_readable_number_of_ticks(start: float, decades: float) -> None:
    ticks = log_ticks((start, start + decades))
    assert 2 <= len(ticks) <= 12
    assert all(start <= math.log10(tick) <= start + decades for tick in ticks)
    assert len({short(tick) for tick in ticks}) == len(ticks)


def test_an_axis_ignores_values_that_are_not_finite_and_positive() -> None:
    assert padded([math.nan, math.inf, 0.0, 10.0, 100.0], 0, 0) == (1.0, 2.0)
