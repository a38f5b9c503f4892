"""The part of the check `progress` that finds stragglers: ranks that the others wait for. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from dit.console.formatting import format_number
from dit.study.records import HealthEvent

CHECK = "progress"
FACTOR = 2.0
"""A rank is slow when it needs more than this times the median of the other ranks."""
STEPS = 100
"""A rank that is slow for this many steps is a straggler."""


def slow_ranks(seconds: Sequence[float]) -> list[int]:
    """Return the ranks that need more than FACTOR times the median of the other ranks' seconds.

    Of the others, because of two ranks neither can be above twice the median of both.
    """
    return [
        rank
        for rank, own in enumerate(seconds)
        if len(seconds) > 1 and own > FACTOR * statistics.median([*seconds[:rank], *seconds[rank + 1 :]])
    ]


class Stragglers:
    """Looks at each window's seconds, and reports a straggler once when it is found and once when it keeps up."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts
        self._slow_since: dict[int, int] = {}
        self._reported: set[int] = set()

    def look(self, step: int, window: int, seconds: Sequence[float]) -> list[HealthEvent]:
        """Return new events after a window of `window` steps that ended at `step`; `seconds` is per step, by rank."""
        slow = slow_ranks(seconds)
        for rank in slow:
            self._slow_since.setdefault(rank, step - window)
        caught_up = [rank for rank in self._slow_since if rank not in slow]
        for rank in caught_up:
            del self._slow_since[rank]
        found = [
            rank for rank, since in self._slow_since.items() if step - since >= STEPS and rank not in self._reported
        ]
        events = [self._found(step, rank, seconds) for rank in found]
        events += [self._ended(step, rank, seconds) for rank in caught_up if rank in self._reported]
        self._reported = (self._reported | set(found)) - set(caught_up)
        return events

    def _found(self, step: int, rank: int, seconds: Sequence[float]) -> HealthEvent:
        message = (
            f"rank {rank} on {self._hosts[rank]} holds up the others: since step {self._slow_since[rank]} it computes"
            f" {format_number(seconds[rank])} s per step, the median of the others is"
            f" {format_number(_others(rank, seconds))} s; check the load, CPU limit and temperature of its machine"
        )
        return _event(step, rank, seconds, "warn", message)

    def _ended(self, step: int, rank: int, seconds: Sequence[float]) -> HealthEvent:
        message = f"rank {rank} on {self._hosts[rank]} keeps up with the others again at step {step}"
        return _event(step, rank, seconds, "ok", message)


def _event(step: int, rank: int, seconds: Sequence[float], action: str, message: str) -> HealthEvent:
    value = seconds[rank] / _others(rank, seconds) if _others(rank, seconds) else None
    bound = f"at most {FACTOR:g} times the median of the other ranks, for {STEPS} steps"
    return HealthEvent.model_validate(
        {"check": CHECK, "step": step, "value": value, "bound": bound, "action": action, "message": message}
    )


def _others(rank: int, seconds: Sequence[float]) -> float:
    return statistics.median([*seconds[:rank], *seconds[rank + 1 :]])
