"""The log of a training's health events: `health.jsonl`."""

from __future__ import annotations

from dit.storage import Store
from dit.study.records import HealthEvent


def read_events(store: Store, key: str) -> list[HealthEvent]:
    """Return all events, in the order in which they were written; none without a log."""
    lines = store.read(key).splitlines() if store.exists(key) else []
    return [HealthEvent.model_validate_json(line) for line in lines]


def add_event(store: Store, key: str, event: HealthEvent) -> None:
    """Append an event as a JSON line; it is in the store when this returns. Only rank 0 calls this."""
    # A store cannot append. The file has a line per event, so writing all of it again costs little.
    lines = store.read(key) if store.exists(key) else b""
    store.write(key, lines + event.model_dump_json().encode() + b"\n")
