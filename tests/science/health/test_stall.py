"""Who is named when a training does not get on, from the ranks' records and the observer's clock alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dit.health.stall import GAP_SECONDS, NAMED_SECONDS, Stall, StallObserver
from dit.study.records import RankActivity, RankProgress

BEAT = 15
HOUR = 3600


def record(rank: int, now: float, step: int, activity: RankActivity = "step", **changes: object) -> RankProgress:
    """Each machine's clock is an hour ahead of that of the rank before."""
    own = {"rank": rank, "world_size": 3, "host": f"pod-{rank}", "process": 7, "step_time": 0.0, "step_seconds": 1.0}
    return RankProgress.model_validate(
        {**own, "step": step, "activity": activity, "written": now + rank * HOUR, **changes}
    )


Look = Callable[[int], list[RankProgress]]


def watched(look: Look, seconds: int, observer: StallObserver | None = None) -> Stall | None:
    """What the observer finds at last, after a look at every beat; the stall begins at 0."""
    observer = observer or StallObserver()
    found = [observer.look(look(now), now) for now in range(-10 * BEAT, seconds + 1, BEAT)]
    assert sum(found) == (observer.stall is not None)
    return observer.stall


def frozen(now: int) -> list[RankProgress]:
    return [record(0, now, min(now, 0)), record(1, min(now, 0), min(now, 0)), record(2, now, min(now, 0))]


def hanging(now: int) -> list[RankProgress]:
    return [record(0, now, min(now, 0), "ranks"), record(1, now, min(now, 0), "data"), record(2, now, min(now, 0))]


def behind(now: int) -> list[RankProgress]:
    return [record(0, now, min(now, 0)), record(1, now, min(now, -1), "ranks"), record(2, now, min(now, 0))]


def together(now: int) -> list[RankProgress]:
    return [record(rank, now, min(now, 0)) for rank in range(3)]


def ended(now: int) -> list[RankProgress]:
    """The others end when they have waited in vain for a frozen rank; their records stay."""
    return [record(rank, min(now, 0 if rank == 1 else 90), min(now, 0)) for rank in range(3)]


def gone(now: int) -> list[RankProgress]:
    """Rank 1 hangs, and the rank that waits for it ends after it was named."""
    return [record(0, min(now, 250), min(now, 0), "ranks"), record(1, now, min(now, 0), "data")]


def all_frozen(now: int) -> list[RankProgress]:
    return [record(rank, min(now, 0), min(now, 0)) for rank in range(3)]


@pytest.mark.parametrize(
    ("look", "kind", "ranks"),
    [
        (frozen, "frozen", [1]),
        (hanging, "stuck", [1]),
        (behind, "stuck", [1]),
        (together, "together", [0, 1, 2]),
        (ended, "frozen", [1]),
        (all_frozen, "frozen", [0, 1, 2]),
    ],
)
def test_who_holds_up_the_others_is_named_within_5_minutes_and_not_at_once(
    look: Look, kind: str, ranks: list[int]
) -> None:
    assert watched(look, int(NAMED_SECONDS) - BEAT) is None
    stall = watched(look, 300 - 2 * BEAT)
    assert stall is not None
    assert (stall.kind, [record.rank for record in stall.ranks]) == (kind, ranks)
    cause = stall.cause(wall_time=stall.seconds)
    assert "rank 1 on pod-1" in cause
    assert "since 1970-01-01 00:00:00 UTC" in cause
    assert f"last step {stall.step}" in cause


@pytest.mark.parametrize(
    ("activity", "step_seconds", "limit"),
    [
        ("start", None, HOUR),
        ("checkpoint", 1.0, HOUR),
        ("step", None, HOUR),
        ("step", 60, 1200),
    ],
)
def test_loading_compiling_saving_and_long_steps_have_longer_limits(
    activity: RankActivity, step_seconds: float | None, limit: int
) -> None:
    def look(now: int) -> list[RankProgress]:
        return [record(rank, now, min(now, 0), activity, step_seconds=step_seconds) for rank in range(2)]

    assert watched(look, limit - BEAT) is None
    stall = watched(look, limit + BEAT)
    assert stall is not None
    assert stall.limit == limit


def test_ranks_that_end_because_of_a_stall_are_not_named_instead() -> None:
    stall = watched(gone, 2 * HOUR)
    assert stall is not None
    assert (stall.kind, [record.rank for record in stall.ranks]) == ("stuck", [1])


def test_records_of_an_earlier_start_are_not_a_stall() -> None:
    assert watched(lambda _: [record(rank, 0, 5) for rank in range(2)], 2 * HOUR) is None


def test_an_observer_that_could_not_look_for_a_while_starts_anew() -> None:
    observer = StallObserver()
    assert watched(frozen, 200, observer) is None
    later = 200 + int(GAP_SECONDS) + BEAT
    assert not observer.look(frozen(later), later)
    assert not observer.look(frozen(later + BEAT), later + BEAT)


def test_a_stall_ends_when_its_rank_gets_on_restarts_or_ends() -> None:
    stall = watched(frozen, 270)
    assert stall is not None
    assert not stall.goes_on(frozen(900))
    assert stall.goes_on([record(1, 900, 1)])
    assert stall.goes_on([record(1, 900, 0, process=8)])
    assert stall.goes_on([])
