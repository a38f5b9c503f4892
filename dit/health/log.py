"""What watches over a training, and the record of what it saw: `health.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dit.storage import Store
from dit.study.records import HealthEvent
from dit.training.window import StepLosses


class NonFinite(NamedTuple):
    """Where a training went wrong: the first step, and its first term in the order of computation."""

    step: int
    term: str

    def event(self, message: str) -> HealthEvent:
        """The record of it."""
        return HealthEvent(
            check="finite", step=self.step, value=None, bound=f"finite {self.term}", action="stop", message=message
        )


class HealthLog:
    """A variant's health events, one JSON line each.

    A store cannot append, so every event writes the whole small file; only rank 0 holds a log.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._lines = store.read(key).splitlines() if store.exists(key) else []

    def add(self, event: HealthEvent) -> None:
        """Append one event, durably."""
        self._lines.append(event.model_dump_json().encode())
        self._store.write(self._key, b"\n".join(self._lines) + b"\n")


def first_nonfinite(rows: Sequence[StepLosses]) -> NonFinite | None:
    """The first step whose loss or gradient is not finite."""
    return next((NonFinite(row.step, term) for row in rows if (term := row.first_nonfinite())), None)
