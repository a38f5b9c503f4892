"""What each training step measured, and what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from dit.study.records import HealthEvent


class StepLosses(NamedTuple):
    """What one step measured, over the whole global batch."""

    step: int
    mse: float
    vb: float
    grad_norm: float

    @property
    def total(self) -> float:
        """The training objective, mse + vb."""
        return self.mse + self.vb

    def first_nonfinite(self) -> str | None:
        """The first term, in the order in which they are computed, that is not finite."""
        terms = {"mse": self.mse, "vb": self.vb, "gradient norm": self.grad_norm}
        return next((name for name, value in terms.items() if not math.isfinite(value)), None)


class NonFinite(NamedTuple):
    """Where a training went wrong: the first step, and its first term in the order of computation."""

    step: int
    term: str

    def event(self, message: str) -> HealthEvent:
        """The record of it."""
        return HealthEvent(
            check="finite", step=self.step, value=None, bound=f"finite {self.term}", action="stop", message=message
        )


def first_nonfinite(rows: Sequence[StepLosses]) -> NonFinite | None:
    """The first step whose loss or gradient is not finite."""
    return next((NonFinite(row.step, term) for row in rows if (term := row.first_nonfinite())), None)
