"""Stragglers: which ranks are slow, for how long, and what is reported once."""

from __future__ import annotations

import pytest

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


def test_rank_that_is_slow_for_100_steps_is_reported_once_until_it_keeps_up() -> None:
    found = Stragglers(["a", "b"])
    slow, fine = [0.1, 0.3], [0.1, 0.11]
    assert found.look(40, 40, fine) == []
    assert found.look(80, 40, slow) == []
    assert found.look(120, 40, slow) == []
    [event] = found.look(160, 40, slow)
    assert (event.check, event.action, event.step) == ("progress", "warn", 160)
    assert event.value == pytest.approx(3)
    assert "rank 1 on b holds up the others: since step 40 it computes 0.3" in event.message
    assert found.look(200, 40, slow) == []
    [event] = found.look(240, 40, fine)
    assert (event.action, event.step) == ("ok", 240)


def test_pauses_shorter_than_100_steps_are_not_reported() -> None:
    found = Stragglers(["a", "b", "c"])
    for step in range(40, 800, 40):
        seconds = [0.1, 0.5 if step % 120 else 0.1, 0.1]
        assert found.look(step, 40, seconds) == []
