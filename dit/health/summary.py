"""The last reading of every check of a study, for tables. Torch-free."""

from __future__ import annotations

from dit.health.log import last_events, read_events
from dit.storage import Store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import HealthEvent

COLUMNS = ("of", "check", "step", "value", "bound", "result")


def readings(config: StudyConfig, store: Store) -> list[tuple[str, HealthEvent]]:
    """Return (dataset or variant, its last reading) of every check that was made, in the order of the log."""
    places = [(config.dataset.name, None), *((spec.name, spec) for spec in config.specs)]
    found = [(name, last_events(read_events(store, layout.health(config, spec)))) for name, spec in places]
    return [(name, event) for name, events in found for event in events.values()]


def rows(readings: list[tuple[str, HealthEvent]]) -> list[list[str | float | None]]:
    """Return the readings as rows of `COLUMNS`."""
    return [[name, event.check, event.step, event.value, event.bound, event.action] for name, event in readings]


def further(readings: list[tuple[str, HealthEvent]]) -> list[str]:
    """Return the messages of the failures that are not in the headline."""
    shown = headline(readings)
    return [event.message for _, event in readings if event.action != "ok" and event.message not in shown]


def headline(readings: list[tuple[str, HealthEvent]]) -> str:
    """Return one line: that all checks are healthy, or the first failure's message; empty without a reading."""
    failed = [event for _, event in readings if event.action != "ok"]
    failed.sort(key=lambda event: event.action != "stop")
    if failed:
        return f"{len(failed)} of {len(readings)} health checks failed: {failed[0].message}"
    return f"healthy: {len(readings)} checks" if readings else ""
