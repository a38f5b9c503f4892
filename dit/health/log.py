"""The log of a training's health events: `health.jsonl`."""

from __future__ import annotations

from dit.storage import Store
from dit.study.records import HealthEvent


class HealthLog:
    """A variant's health events, one JSON line each; only rank 0 has a log.

    A store cannot append, so each event writes the whole file, which is small.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._lines = store.read(key).splitlines() if store.exists(key) else []

    def add(self, event: HealthEvent) -> None:
        """Append an event; it is in the store when this returns."""
        self._lines.append(event.model_dump_json().encode())
        self._store.write(self._key, b"\n".join(self._lines) + b"\n")
