"""The types of a health check: when it is made, what it reads, and what it says when it fails. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dit.study.checks import CheckName
from dit.study.records import HealthEvent

Moment = Literal[
    "plan",
    "codec",
    "prepared",
    "sampler",
    "feed",
    "start",
    "losses",
    "window",
    "noise",
    "ema",
    "checkpoint",
    "replicas",
    "progress",
    "samples",
    "evaluation",
]
"""When a check is made. Each moment has one view: the values that its checks may read."""
Verdict = Literal["ok", "warn", "stop"]


@dataclass(frozen=True)
class Reading:
    """What a check measured."""

    value: float | None
    bound: str
    """What the value must fulfil, such as `|z| < 5`."""
    verdict: Verdict = "ok"
    cause: str = ""
    """What a failure points to."""
    alike: str = ""
    """What else looks the same; empty if nothing does."""
    advice: str = ""
    """The next thing to do."""

    def message(self, check: str) -> str:
        """One line: the cause, the value against its bound, what looks the same, what to do; empty if it is ok."""
        if self.verdict == "ok":
            return ""
        shown = "" if self.value is None else f"{self.value:.4g}, "
        alike = f"; {self.alike} would look the same" if self.alike else ""
        return f"{self.cause} ({check}: {shown}must be {self.bound}){alike}; {self.advice}"


@dataclass(frozen=True)
class Gate:
    """One row of the table of checks."""

    number: int
    name: CheckName
    moment: Moment
    read: Callable[[Any], Reading | None]
    """The moment's view -> a reading, or None if the check is not due."""


def event(gate: Gate, reading: Reading, step: int, where: str, setting: str | None) -> HealthEvent:
    """Return the reading as a line of the health log; the study's setting overrides the action of a failure."""
    action: Verdict = reading.verdict
    if action != "ok" and setting in ("warn", "stop"):
        action = "warn" if setting == "warn" else "stop"
    message = reading.message(gate.name)
    return HealthEvent(
        check=gate.name,
        step=step,
        value=reading.value,
        bound=reading.bound,
        action=action,
        message=f"{where}: {message}" if message else "",
        cause=reading.cause,
        advice=reading.advice,
    )
