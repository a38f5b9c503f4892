"""The calibration of the verdicts: what it simulates and counts."""

from __future__ import annotations

from bench.calibration import NOISES, simulate, truths


def test_two_equal_models_are_told_apart_too_often_by_one_seed_and_as_rarely_as_claimed_by_three() -> None:
    def decided(seeds: int) -> float:
        patches = simulate(truths()["all equal"], NOISES[0], seeds, 100)[1]
        assert patches.right is None, "no decision on equal models is right"
        return sum(share or 0.0 for share in patches.wrong)

    assert decided(1) > 0.2
    assert decided(3) < 0.12


def test_a_true_claim_cannot_be_wrongly_supported() -> None:
    claims = simulate(truths()["as on the digits"], NOISES[0], 3, 20)
    assert [claim.wrong[0] for claim in claims] == [None] * 3
    assert all(claim.right == claim.share("supported") for claim in claims)
