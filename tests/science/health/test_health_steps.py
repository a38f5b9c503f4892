"""The check that losses and gradient norms are finite."""

from __future__ import annotations

import math

from dit.health.steps import StepLosses, first_nonfinite


def test_first_bad_step_and_its_first_bad_term_are_returned() -> None:
    good = StepLosses(1, 0.5, 0.1, 1.0)
    assert first_nonfinite([good]) is None
    rows = [good, StepLosses(2, 0.5, math.inf, math.nan), StepLosses(3, math.nan, math.nan, math.nan)]
    assert first_nonfinite(rows) == (2, "vb")
    assert first_nonfinite([StepLosses(9, 0.1, 0.1, math.nan)]) == (9, "gradient norm")
