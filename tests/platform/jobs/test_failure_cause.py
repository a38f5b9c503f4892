"""Which pod caused the failure of a job, and how its log names the rank and the reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from dit.errors import PeerError
from pipelines.jobs.failure_cause import Death, cause_of, own_message, rank_of


def death(name: str, minutes: float, code: int = 1) -> Death:
    return Death(name, f"uid-{name}", datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes), code, "Error")


@pytest.mark.parametrize(
    ("observed", "first"),
    [
        ([], None),
        ([death("a", 5), death("b", 4), death("c", 6)], death("b", 4)),
        ([death("a", 1), death("b", 2), death("a", 8), death("b", 7)], death("b", 7)),
        ([death("c", 0), death("a", 60), death("b", 61)], death("a", 60)),
    ],
    ids=["nothing seen", "one round", "the last of two rounds", "an old loss is another story"],
)
def test_the_cause_is_the_first_exit_of_the_last_failure(observed: list[Death], first: Death | None) -> None:
    assert cause_of(observed) == first


@pytest.mark.parametrize("code", [PeerError.exit_code, 143], ids=["lost its peers", "SIGTERM"])
def test_a_pod_that_lost_its_peer_is_not_the_cause_even_if_it_ended_first(code: int) -> None:
    follower, cause = death("follower", 1.0, code), death("cause", 1.5)
    assert cause_of([follower, cause]) == cause
    assert cause_of([killed := replace(follower, exit_code=137), cause]) == killed
    assert cause_of([follower]) == follower


def test_the_log_has_the_rank_and_the_error_message() -> None:
    lines = ["  role_ranks=[3]", "  global_ranks=[3]", "dit: loss is not finite at step 12 (rank 3)", "Traceback"]
    assert rank_of(lines) == rank_of(lines[2:3]) == "3"
    assert own_message(lines) == "loss is not finite at step 12 (rank 3)"
    assert rank_of(["nothing"]) is own_message(["nothing"]) is None
