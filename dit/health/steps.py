"""The losses of each training step, and the check that they are finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from dit.health.gate import Reading
from dit.study.records import HealthEvent


class StepLosses(NamedTuple):
    """Losses (means over the global batch) and gradient norm of one step."""

    step: int
    mse: float
    vb: float
    grad_norm: float

    @property
    def total(self) -> float:
        """The training loss, mse + vb (Nichol & Dhariwal 2021, eq. 16)."""
        return self.mse + self.vb


class NonFinite(NamedTuple):
    """The first step with a value that is not finite, and the first such term of it."""

    step: int
    term: str

    def event(self, message: str) -> HealthEvent:
        """Return the health event with this message."""
        return HealthEvent(
            check="finite",
            step=self.step,
            value=None,
            bound=f"finite {self.term}",
            action="stop",
            message=message,
            cause=f"{self.term} is not finite",
            advice="check the data and train.precision, or lower train.learning_rate under another study name",
        )


def finite(bad: NonFinite | None) -> Reading:
    """Check that there is no value that is not finite."""
    if bad is None:
        return Reading(None, "finite losses, gradients and weights")
    return Reading(
        None,
        f"finite {bad.term}",
        "stop",
        f"{bad.term} of step {bad.step} is not finite",
        "a damaged shard, a precision that is too low, or a learning rate that is too high",
        "check the data and train.precision, or lower train.learning_rate under another study name",
    )


def first_nonfinite(rows: Sequence[StepLosses]) -> NonFinite | None:
    """Return the first step whose loss or gradient norm is not finite; None if there is none."""
    for row in rows:
        # In order of computation: the first bad term is the cause of those after it.
        for term, value in (("mse", row.mse), ("vb", row.vb), ("gradient norm", row.grad_norm)):
            if not math.isfinite(value):
                return NonFinite(row.step, term)
    return None
