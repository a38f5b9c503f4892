"""The log of health checks: `health.jsonl`. Torch-free."""

from __future__ import annotations

from dit.errors import DataError, MismatchError
from dit.storage import Store
from dit.study.records import HealthEvent


def add_event(store: Store, key: str, event: HealthEvent) -> None:
    """Append an event as a JSON line; it is in the store when this returns. Only rank 0 calls this."""
    # A store cannot append. The file has few lines, so writing all of it again costs little.
    lines = store.read(key) if store.exists(key) else b""
    store.write(key, lines + event.model_dump_json().encode() + b"\n")


def read_events(store: Store, key: str) -> list[HealthEvent]:
    """Return the events in order; none without a log. A line that cannot be read is left out."""
    if not store.exists(key):
        return []
    events = []
    for line in store.read(key).splitlines():
        try:
            events.append(HealthEvent.from_json(line, key))
        except (DataError, MismatchError):
            continue
    return events


def last_events(events: list[HealthEvent]) -> dict[str, HealthEvent]:
    """Return the last event of each check, by name."""
    return {event.check: event for event in events}


class HealthLog:
    """Keeps each check's last reading and all its failures; only rank 0 has one.

    A failure is in the store when `add` returns. A healthy reading replaces the healthy one before it and is stored by
    `flush`, so that a long training does not write a line at each of its thousands of readings.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._pending: dict[str, HealthEvent] = {}

    def add(self, event: HealthEvent) -> None:
        """Add a reading."""
        self._pending[event.check] = event
        if event.action != "ok":
            self.flush()

    def flush(self) -> None:
        """Store the readings since the last call: one line for each check, in place of its last healthy one."""
        if not self._pending:
            return
        before = read_events(self._store, self._key)
        kept = [event for event in before if event.action != "ok" or event.check not in self._pending]
        lines = [event.model_dump_json() + "\n" for event in (*kept, *self._pending.values())]
        self._store.write(self._key, "".join(lines).encode())
        self._pending.clear()
