"""The record of what the checks of a training saw: `health.jsonl`."""

from __future__ import annotations

from dit.storage import Store
from dit.study.records import HealthEvent


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
