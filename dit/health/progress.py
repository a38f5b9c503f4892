"""The check `progress`: every rank gets on, and as fast as the others. Torch-free."""

from __future__ import annotations

from typing import NamedTuple

from dit.console.formatting import format_number
from dit.health.gate import Gate, Reading
from dit.health.stall import Stall
from dit.health.stragglers import FACTOR, STEPS, Pace


class Stalled(NamedTuple):
    """Ranks for which the others wait, at `wall_time` in seconds since 1970, and what comes of it."""

    stall: Stall
    wall_time: float
    consequence: str


def progress(view: Pace | Stalled) -> Reading:
    """Check that no rank holds up the others."""
    return _stall(view) if isinstance(view, Stalled) else _pace(view)


def _stall(view: Stalled) -> Reading:
    stall = view.stall
    frozen = stall.kind == "frozen"
    return Reading(
        stall.seconds,
        f"at most {stall.limit:.0f} s without a change",
        "warn",
        stall.cause(view.wall_time),
        "a machine without a network" if frozen else "a collective that never returns, and a GPU or a disk that hangs",
        f"{view.consequence}; look at that machine's kernel log, and at the process with py-spy dump",
    )


def _pace(pace: Pace) -> Reading:
    bound = f"at most {FACTOR:g} times the median of the other ranks, for {STEPS} steps"
    ratios = [
        own / pace.others(rank) for rank, own in enumerate(pace.seconds) if len(pace.seconds) > 1 and pace.others(rank)
    ]
    if not pace.slow_since:
        return Reading(max(ratios, default=None), bound)
    rank, since = max(pace.slow_since, key=lambda item: pace.seconds[item[0]])
    named = ", ".join(f"rank {slow} on {pace.hosts[slow]}" for slow, _ in pace.slow_since)
    return Reading(
        max(ratios, default=None),
        bound,
        "warn",
        f"{named} holds up the others: since step {since} rank {rank} computes {format_number(pace.seconds[rank])} s"
        f" per step, the median of the others is {format_number(pace.others(rank))} s",
        "",
        "check the load, CPU limit and temperature of its machine",
    )


PROGRESS = Gate(16, "progress", "progress", progress)
"""The row of this check. Launchers read it without the other rows, which need torch."""
