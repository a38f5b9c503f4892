"""The last reading of every check of a study: one line and tables for people. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from dit.console.formatting import format_number
from dit.health.log import last_events, read_events
from dit.storage import Store
from dit.study import layout
from dit.study.checks import CheckName
from dit.study.config import StudyConfig
from dit.study.records import HealthEvent
from dit.study.runs import Run, spec_of

COLUMNS = ("of", "check", "step", "value", "bound", "result")
CHECKS: tuple[str, ...] = get_args(CheckName)
"""Names of the checks, in the order of their table."""
RATIOS = ("health/ratio_a", "health/ratio_b")
"""Metrics of a training: its squared noise error over the dataset's bounds a and b at the same timesteps."""
_OF_DATASET = ("codec", "data")
"""Checks of the dataset. Its readings come before those of the variants."""
_MARKS = {"ok": "✓", "warn": "!", "stop": "✗"}
_NAMED = 3
"""Most further failures that the headline names."""

Readings = Sequence[tuple[str, HealthEvent]]
"""(dataset or run, last reading of one check)."""


def readings(config: StudyConfig, store: Store) -> list[tuple[str, HealthEvent]]:
    """Return the last reading of every check that was made, the dataset's first, in the order of the log."""
    places = [(config.dataset.name, None), *((run.name, run) for run in config.runs)]
    return [(name, event) for name, run in places for event in _last(config, store, run)]


def stopped_by(config: StudyConfig, store: Store, run: Run) -> HealthEvent | None:
    """Return the reading that stopped a run; None if no check's last reading did."""
    return next((event for event in _last(config, store, run) if event.action == "stop"), None)


def rows(readings: Readings) -> list[list[str | float | None]]:
    """Return the readings as rows of `COLUMNS`."""
    return [[name, event.check, event.step, event.value, event.bound, event.action] for name, event in readings]


def matrix(readings: Readings) -> tuple[list[str], list[list[str | float | None]]]:
    """Return columns and rows: a row for each check, a column for the dataset and for each run."""
    places = list(dict.fromkeys(name for name, _ in readings))
    cells = {(name, event.check): _cell(event) for name, event in readings}
    return ["Check", *places], [[check, *(cells.get((name, check)) for name in places)] for check in _checks(readings)]


def headline(readings: Readings) -> str:
    """Return one line: that all checks are healthy, or what broke, when and why; empty without a reading."""
    if not readings:
        return ""
    failed = [(name, event) for name, event in readings if event.action == "stop"]
    if failed:
        (name, event), *others = failed
        return f"{name} broke {_when(name, event)}: {_reason(name, event)}{_also('broken', others)}"
    warned = [(name, event) for name, event in readings if event.action == "warn"]
    healthy = {event.check for _, event in readings} - {event.check for _, event in warned}
    checks, runs = _checks(readings), {name for name, _ in readings if spec_of(name) is not None}
    kind = "variant" if len({spec_of(name) for name in runs}) == len(runs) else "run"
    plural = "" if len(runs) == 1 else "s"
    line = f"healthy: {len(healthy)} of {len(checks)} checks in {len(runs)} {kind}{plural}"
    unread = [check for check in checks if check not in {event.check for _, event in readings}]
    if 0 < len(unread) <= _NAMED:
        line += f"; no reading of {', '.join(unread)}"
    if not warned:
        return line
    (name, event), *others = warned
    return f"{line}; warning: {name} {_when(name, event)}: {_reason(name, event)}{_also('warned', others)}"


def messages(readings: Readings) -> list[str]:
    """Return the whole message of every failure, those that stopped something first."""
    failed = sorted((event for _, event in readings if event.action != "ok"), key=lambda event: event.action != "stop")
    return [event.message for event in failed]


def _last(config: StudyConfig, store: Store, run: Run | None) -> list[HealthEvent]:
    # A check that is off is no longer made: its last reading would stay for good.
    off = {check for check, action in config.health.items() if action == "off"}
    events = last_events(read_events(store, layout.health(config, run)))
    return [event for event in events.values() if event.check not in off]


def _checks(readings: Readings) -> list[str]:
    # A log of another version may have checks that are not in the table.
    of_variant = bool(readings) and spec_of(readings[0][0]) is not None
    listed = [check for check in CHECKS if not (of_variant and check in _OF_DATASET)]
    return [*listed, *dict.fromkeys(event.check for _, event in readings if event.check not in listed)]


def _cell(event: HealthEvent) -> str:
    return _MARKS[event.action] + ("" if event.value is None else f" {format_number(event.value)}")


def _when(name: str, event: HealthEvent) -> str:
    if spec_of(name) is None:
        return "in its preparation"
    return f"at step {event.step}" if event.step else "before its first step"


def _reason(name: str, event: HealthEvent) -> str:
    if not event.cause:
        return event.message.removeprefix(f"{name}: ")
    return f"{event.cause}; {event.advice}" if event.advice else event.cause


def _also(what: str, others: Readings) -> str:
    if not others:
        return ""
    named = [f"{name} ({event.check})" for name, event in others[:_NAMED]]
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return f"; also {what}: {', '.join(named)}{more}"
