"""The part of the check `progress` that finds ranks which do not get on. Torch-free.

An observer reads the ranks' records every few seconds, and times the changes with its own clock, because the clocks of
machines differ. `sight` and `find_stall` are pure; StallObserver keeps what it saw between two looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from dit.console.formatting import format_count, format_duration
from dit.study.records import RankProgress

NAMED_SECONDS = 240.0
"""After this time without a change a rank is named: with the pauses between two looks, within 5 minutes."""
STEPS = 20
"""A step may take this many times the mean step."""
LONG_SECONDS = 3600.0
"""Limit of what may take long: loading, the first steps with their compilation, and writing a checkpoint."""
SILENT_SECONDS = 60.0
"""Time of four records. Without a new one, the process is frozen or lost; with new ones, its step does not end."""
GAP_SECONDS = 120.0
"""An observer that could not look for so long forgets what it saw: it was itself stopped, or the store was away."""
_LONG = ("start", "checkpoint")
_ORDER = ("start", "data", "step", "ranks", "checkpoint")
_DOES = {
    "start": "loads, or computes its first step",
    "data": "waits for its next batch",
    "step": "computes a step or waits in it for the others",
    "ranks": "waits for the other ranks",
    "checkpoint": "writes a checkpoint or waits for it",
}
_NAMED = 3


@dataclass(frozen=True)
class Sighting:
    """A rank's record, and when the observer saw it change, in seconds of the observer's monotonic clock."""

    record: RankProgress
    written: float
    """When the record was last found to be new."""
    moved: float
    """When its step or activity was last found to be another one."""
    is_alive: bool = False
    """Whether the observer has seen this process write."""


@dataclass(frozen=True)
class Stall:
    """The ranks for which a training waits."""

    ranks: tuple[RankProgress, ...]
    kind: Literal["frozen", "stuck", "together"]
    """They write no records; their step does not end, while others wait; all ranks are at the same point."""
    seconds: float
    """How long the observer has seen no change."""
    limit: float
    """After how many seconds such a stall is named."""

    @property
    def step(self) -> int:
        """The last step that is complete on all of the ranks."""
        return min(record.step for record in self.ranks)

    def goes_on(self, records: Sequence[RankProgress]) -> bool:
        """Return whether one of the ranks has got on, was started again, or has ended."""
        now = {record.rank: _state(record) for record in records}
        return any(now.get(record.rank) != _state(record) for record in self.ranks)

    def cause(self, wall_time: float) -> str:
        """One line: pod or machine, rank, last step, and since when; `wall_time` is now, in seconds since 1970."""
        since = datetime.fromtimestamp(wall_time, UTC) - timedelta(seconds=self.seconds)
        named = ", ".join(f"rank {record.rank} on {record.host}" for record in self.ranks[:_NAMED])
        more = f" and {len(self.ranks) - _NAMED} more" if len(self.ranks) > _NAMED else ""
        what = {
            "frozen": "no sign of life",
            "stuck": f"does not get on: it {_DOES[self.ranks[0].activity]}",
            "together": f"no rank gets on: each {_DOES[self.ranks[0].activity]}",
        }[self.kind]
        return (
            f"{named}{more}: {what} since {since:%Y-%m-%d %H:%M:%S} UTC, for {format_duration(self.seconds)};"
            f" last step {format_count(self.step)}"
        )


class StallObserver:
    """Looks at the records of a training's ranks every few seconds."""

    def __init__(self) -> None:
        self.seen: dict[int, Sighting] = {}
        self.stall: Stall | None = None
        """The ranks for which the others wait; None while all get on."""
        self._looked = self._began = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether a rank has been seen to write."""
        return any(sighting.is_alive for sighting in self.seen.values())

    def look(self, records: Sequence[RankProgress], now: float) -> bool:
        """Return whether a stall is found that was not known; `now` is of a monotonic clock.

        A stall ends when one of its ranks gets on, not when others fall silent, too: they end because of it.
        """
        self.seen = sight(self.seen if now - self._looked < GAP_SECONDS else {}, records, now)
        self._looked = now
        if self.stall is not None and self.stall.goes_on(records):
            self.stall = None
        found = find_stall(self.seen, now) if self.stall is None else None
        if found is None:
            return False
        self.stall, self._began = found, now - found.seconds
        return True

    def waited(self, now: float) -> float:
        """Return the seconds since the stall began."""
        return now - self._began


def sight(before: Mapping[int, Sighting], records: Sequence[RankProgress], now: float) -> dict[int, Sighting]:
    """Return the sightings after a look at `now`. Ranks of which there is no record any more are forgotten."""
    return {record.rank: _sighted(before.get(record.rank), record, now) for record in records}


def find_stall(seen: Mapping[int, Sighting], now: float) -> Stall | None:
    """Return the ranks for which the others wait; None while all get on.

    None also while no rank has been seen alive: the records may be those of an earlier start.
    """
    if not any(sighting.is_alive for sighting in seen.values()):
        return None
    silent = [sighting for sighting in seen.values() if now - sighting.written >= SILENT_SECONDS]
    if silent:
        # The first to fall silent: others may have ended because of it.
        first = min(sighting.written for sighting in silent)
        frozen = [sighting for sighting in silent if sighting.written - first < SILENT_SECONDS]
        return _stall(frozen, "frozen", now - first, NAMED_SECONDS)
    # Ranks take each step together, so the one that is behind holds up the others.
    last = min(map(_position, seen.values()))
    behind = [sighting for sighting in seen.values() if _position(sighting) == last]
    kind: Literal["stuck", "together"] = "together" if len(behind) == len(seen) else "stuck"
    limit = max(limit_of(sighting.record) for sighting in behind)
    return _stall(behind, kind, now - max(sighting.moved for sighting in behind), limit)


def _sighted(before: Sighting | None, record: RankProgress, now: float) -> Sighting:
    if before is None:
        return Sighting(record, now, now)
    if before.record == record:
        return before
    moved = before.moved if _state(before.record) == _state(record) else now
    return Sighting(record, now, moved, is_alive=True)


def _stall(
    sightings: Sequence[Sighting], kind: Literal["frozen", "stuck", "together"], seconds: float, limit: float
) -> Stall | None:
    records = sorted((sighting.record for sighting in sightings), key=lambda record: record.rank)
    return Stall(tuple(records), kind, seconds, limit) if seconds >= limit else None


def _state(record: RankProgress) -> tuple[object, ...]:
    return record.host, record.process, record.step, record.activity


def _position(sighting: Sighting) -> tuple[int, int]:
    return sighting.record.step, _ORDER.index(sighting.record.activity)


def limit_of(record: RankProgress) -> float:
    """Return the seconds that a rank may take for what it does."""
    if record.activity in _LONG or record.step_seconds is None:
        return LONG_SECONDS
    return max(NAMED_SECONDS, STEPS * record.step_seconds)
