"""The log of health checks: `health.jsonl`. Torch-free."""

from __future__ import annotations

from dit.storage import Store
from dit.study.records import HealthEvent


def read_events(store: Store, key: str) -> list[HealthEvent]:
    """Return all events, in the order in which they were written; none without a log."""
    lines = store.read(key).splitlines() if store.exists(key) else []
    return [HealthEvent.model_validate_json(line) for line in lines]


def add_event(store: Store, key: str, event: HealthEvent) -> None:
    """Append an event as a JSON line; it is in the store when this returns. Only rank 0 calls this."""
    # A store cannot append. The file has few lines, so writing all of it again costs little.
    lines = store.read(key) if store.exists(key) else b""
    store.write(key, lines + event.model_dump_json().encode() + b"\n")


def last_events(events: list[HealthEvent]) -> dict[str, HealthEvent]:
    """Return the last event of each check, by name."""
    return {event.check: event for event in events}


class HealthLog:
    """Keeps each check's last reading, and the first and last of each run of failures; only rank 0 has one.

    A check that begins to fail is in the store when `add` returns. All else is stored by `flush`, so that a long
    training does not write a line at each of its thousands of readings.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._pending: dict[str, HealthEvent] = {}
        self._actions: dict[str, str] = {}

    def add(self, event: HealthEvent) -> bool:
        """Add a reading; return whether the check begins to fail."""
        begins = event.action not in ("ok", self._actions.get(event.check))
        if begins:
            self.flush()
        self._pending[event.check] = event
        self._actions[event.check] = event.action
        if begins:
            self.flush()
        return begins

    def flush(self) -> None:
        """Store the readings since the last call; a reading replaces the one before it of the same check and action."""
        if not self._pending:
            return
        events = read_events(self._store, self._key)
        for event in self._pending.values():
            same = [index for index, old in enumerate(events) if old.check == event.check]
            run = [index for index in same[-2:] if events[index].action == event.action]
            if run and (event.action == "ok" or len(run) == 2):
                del events[run[-1]]
            events.append(event)
        self._store.write(self._key, "".join(event.model_dump_json() + "\n" for event in events).encode())
        self._pending.clear()
