"""The part of the check `progress` that finds stragglers: ranks that the others wait for. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

FACTOR = 2.0
"""A rank is slow when it needs more than this times the median of the other ranks."""
STEPS = 100
"""A rank that is slow for this many steps is a straggler."""


@dataclass(frozen=True)
class Pace:
    """Seconds that each rank computes per step, and the stragglers, each with the step since which it is slow."""

    hosts: tuple[str, ...]
    seconds: tuple[float, ...]
    slow_since: tuple[tuple[int, int], ...]

    def others(self, rank: int) -> float:
        """Return the median of the other ranks' seconds."""
        return _others(rank, self.seconds)


def slow_ranks(seconds: Sequence[float]) -> list[int]:
    """Return the ranks that need more than FACTOR times the median of the other ranks' seconds.

    Of the others, because of two ranks neither can be above twice the median of both.
    """
    return [rank for rank, own in enumerate(seconds) if len(seconds) > 1 and own > FACTOR * _others(rank, seconds)]


class Stragglers:
    """Looks at each window's seconds."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = tuple(hosts)
        self._slow_since: dict[int, int] = {}

    def look(self, step: int, window: int, seconds: Sequence[float]) -> Pace:
        """Return the pace in a window of `window` steps that ended at `step`; `seconds` is per step, by rank."""
        slow = slow_ranks(seconds)
        self._slow_since = {rank: self._slow_since.get(rank, step - window) for rank in slow}
        found = tuple((rank, since) for rank, since in self._slow_since.items() if step - since >= STEPS)
        return Pace(self._hosts, tuple(seconds), found)


def _others(rank: int, seconds: Sequence[float]) -> float:
    return statistics.median([*seconds[:rank], *seconds[rank + 1 :]])
