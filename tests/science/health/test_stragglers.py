"""Stragglers: which ranks are slow, and for how long."""

from __future__ import annotations

import pytest

from dit.health.progress import progress
from dit.health.stragglers import Stragglers, slow_ranks


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [
        ([0.1], []),
        ([0.1, 0.19], []),
        ([0.1, 0.21], [1]),
        ([0.5, 0.1, 0.1, 0.12], [0]),
        ([0.1, 0.1, 0.1, 0.15, 0.1, 0.9, 0.1, 0.9], [5, 7]),
        ([0.0, 0.0], []),
    ],
)
def test_rank_is_slow_above_twice_the_median_of_the_others(seconds: list[float], slow: list[int]) -> None:
    assert slow_ranks(seconds) == slow


def test_rank_that_is_slow_for_100_steps_fails_the_check_until_it_keeps_up() -> None:
    found = Stragglers(["a", "b"])
    slow, fine = [0.1, 0.3], [0.1, 0.11]
    readings = [
        progress(found.look(40 * number, 40, seconds))
        for number, seconds in enumerate([fine, slow, slow, slow, slow, fine], start=1)
    ]
    assert [reading and reading.verdict for reading in readings] == ["ok", "ok", "ok", "warn", "warn", "ok"]
    failed = readings[3]
    assert failed is not None
    assert failed.value == pytest.approx(3)
    assert "rank 1 on b holds up the others: since step 40 rank 1 computes 0.3" in failed.message("progress")


def test_pauses_shorter_than_100_steps_are_not_reported() -> None:
    found = Stragglers(["a", "b", "c"])
    for step in range(40, 800, 40):
        seconds = [0.1, 0.5 if step % 120 else 0.1, 0.1]
        assert not found.look(step, 40, seconds).slow_since
