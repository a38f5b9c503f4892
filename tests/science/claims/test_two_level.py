"""Intervals over seeds and samples on simulated runs with known truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from study_records import metrics_record, study

from dit.claims.two_level import GivenSpread, Runs
from dit.claims.verdicts import judge
from dit.errors import MismatchError
from dit.study.records import Claim, Estimate, MetricsRecord
from dit.study.variants import resolve

CONFIG = study("imagenet256", 1000)
NAMES = ("DiT-B/2", "DiT-L/2", "DiT-XL/2", "DiT-XL/4")
TRUTH = {"DiT-B/2": 4.0, "DiT-L/2": 3.4, "DiT-XL/2": 3.0, "DiT-XL/4": 3.8}
"""Log FID."""
TEMPLATES = {name: metrics_record(CONFIG, resolve(name), 400_000) for name in NAMES}


def run(variant: str, seed: int, log: float, errors: Sequence[float]) -> MetricsRecord:
    """A record of this log metric, with bootstrap replicates of these log errors."""
    value, replicates = math.exp(log), np.exp(log + np.asarray(errors))
    low, high = np.quantile(replicates, [0.025, 0.975])
    changes = {
        "metrics": {"fid": Estimate(value=value, low=min(low, value), high=max(high, value))},
        "replicates": tuple(replicates),
        "train_seed": seed,
    }
    return TEMPLATES[variant].model_copy(update=changes)


def runs(
    seeds: int, spread: float = 0.1, sampling: float = 0.02, common: float = 0.0, draw: int = 0
) -> list[MetricsRecord]:
    """Runs of all variants; `common` is the standard deviation of a seed's effect on all variants."""
    random = np.random.default_rng(draw)
    effects = common * random.standard_normal(seeds)
    return [
        run(
            name,
            seed,
            TRUTH[name] + effects[seed] + spread * random.standard_normal(),
            sampling * random.standard_normal(200),
        )
        for name in NAMES
        for seed in range(seeds)
    ]


def width(estimate: Estimate) -> float:
    return math.log(estimate.high / estimate.low)


def readings(records: list[MetricsRecord], given: GivenSpread | None = None) -> list[str]:
    return [claim.reading for claim in judge("s", records, given=given).claims]


def test_the_value_of_a_variant_is_the_geometric_mean_of_its_runs() -> None:
    records = runs(3)
    own = [record.metrics["fid"].value for record in records if record.variant == "DiT-L/2"]
    assert Runs.of(records).estimate("DiT-L/2").value == pytest.approx(float(np.prod(own)) ** (1 / 3))


def test_equal_noise_gives_students_t_with_the_pooled_spread() -> None:
    """Without noise of sampling the interval is that of a two-way layout, by hand."""
    logs = np.array([[4.0, 4.2], [3.4, 3.3], [3.0, 3.1], [3.8, 3.9]])
    records = [run(n, s, logs[v, s], [0.0] * 100) for v, n in enumerate(NAMES) for s in (0, 1)]
    differences = logs[:, 1] - logs[:, 0]
    # Two seeds: half the variance of the differences is the residual mean square, with 3 degrees of freedom.
    error = math.sqrt(2 * (differences.var(ddof=1) / 2) / 2)
    ratio = Runs.of(records).ratio("DiT-L/2", "DiT-B/2", 0.95)
    assert math.log(ratio.value) == pytest.approx(4.1 - 3.35)
    assert width(ratio) / 2 == pytest.approx(3.182446 * error, rel=2e-3)  # t of 3 degrees of freedom at 97.5 %


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_the_truth_as_often_as_they_claim(seeds: int) -> None:
    covered = []
    for draw in range(150):
        found = Runs.of(runs(seeds, sampling=0.0001, draw=draw))
        estimates = [(found.estimate(name), TRUTH[name]) for name in NAMES]
        ratio = found.ratio("DiT-XL/2", "DiT-XL/4", 0.95), TRUTH["DiT-XL/4"] - TRUTH["DiT-XL/2"]
        covered.append([each.low < math.exp(truth) < each.high for each, truth in (*estimates, ratio)])
    shares = np.mean(covered, axis=0)
    assert np.all((shares > 0.89) & (shares < 0.995)), shares


def test_sampling_noise_shared_by_all_runs_is_not_averaged_away() -> None:
    """All runs have the same noise and labels, so another sample set moves them together."""
    errors = 0.1 * np.random.default_rng(0).standard_normal(200)
    records = [run(name, seed, TRUTH[name] + 0.001 * seed, errors) for name in NAMES for seed in range(3)]
    found = Runs.of(records)
    assert width(found.estimate("DiT-B/2")) == pytest.approx(2 * 1.97 * errors.std(ddof=1), rel=0.02)
    # In a difference of two variants it cancels.
    assert width(found.ratio("DiT-L/2", "DiT-B/2", 0.95)) < 0.01


def test_pairing_by_seed_removes_what_a_seed_does_to_all_variants() -> None:
    found = Runs.of(runs(3, spread=0.01, sampling=0.001, common=0.3))
    ratio = width(found.ratio("DiT-XL/2", "DiT-L/2", 0.95))
    apart = math.hypot(*(width(found.estimate(name)) for name in ("DiT-XL/2", "DiT-L/2")))
    assert ratio < apart / 5


def test_a_run_that_is_missing_does_not_move_a_paired_difference() -> None:
    """The effect of the lost seed is known from the other variants."""
    records = runs(3, spread=0.001, sampling=0.0001, common=0.3)
    fewer = Runs.of([own for own in records if (own.variant, own.train_seed) != ("DiT-L/2", 2)])
    ratio = fewer.ratio("DiT-L/2", "DiT-B/2", 0.95)
    assert math.log(ratio.value) == pytest.approx(TRUTH["DiT-B/2"] - TRUTH["DiT-L/2"], abs=0.01)


def test_one_seed_is_judged_for_this_seed_alone_with_the_interval_of_sampling() -> None:
    records = runs(1, spread=0.0)
    verdict = judge("s", records)
    assert readings(records) == ["supported for this seed"] * 3
    assert Runs.of(records).estimate("DiT-B/2") == records[0].metrics["fid"]
    assert "do not cover the noise of training" in verdict.notes[-1]


def test_several_seeds_are_judged_without_that_limit_and_the_note_has_their_spread() -> None:
    verdict = judge("s", runs(3, spread=0.02))
    assert [claim.reading for claim in verdict.claims] == ["supported"] * 3
    assert (
        "From 3 seeds per variant, pooled over variants: a standard deviation between seeds of 0.0" in verdict.notes[0]
    )
    assert [own.seeds for own in verdict.variants] == [(0, 1, 2)] * 4


def test_a_given_spread_widens_intervals_and_makes_verdicts_undetermined() -> None:
    records = runs(1, spread=0.0)
    assert readings(records, GivenSpread(0.02)) == ["supported"] * 3
    assert readings(records, GivenSpread(0.5)) == ["undetermined"] * 3
    known, guessed = (Runs.of(records, GivenSpread(0.1, freedom)) for freedom in (math.inf, 2))
    assert width(known.estimate("DiT-B/2")) == pytest.approx(2 * 1.96 * math.hypot(0.1, 0.02), rel=0.02)
    assert width(guessed.estimate("DiT-B/2")) > 1.5 * width(known.estimate("DiT-B/2"))


def test_a_given_spread_does_not_replace_a_measured_one() -> None:
    records = runs(3)
    assert Runs.of(records, GivenSpread(9.0)).estimate("DiT-B/2") == Runs.of(records).estimate("DiT-B/2")
    assert "evaluation.seed_spread is not used" in judge("s", records, given=GivenSpread(9.0)).notes[-1]


def test_seeds_that_differ_by_more_than_the_models_leave_the_claims_open() -> None:
    """With the first seed alone the same runs would decide a claim."""
    records = runs(3, spread=0.6, sampling=0.01)
    assert "undetermined" in readings(records)[0]
    first = [own for own in records if own.train_seed == 0]
    assert readings(first)[0] in ("supported for this seed", "contradicted for this seed")


def test_a_reversal_is_tested_at_a_level_divided_by_the_number_of_pairs() -> None:
    """The larger of two models is worse by 2.1 standard errors: clear for one pair, not among two."""
    errors = np.random.default_rng(0).standard_normal((4, 400))
    errors = 0.05 * (errors - errors.mean(axis=1, keepdims=True)) / errors.std(axis=1, ddof=1, keepdims=True)
    logs = {**TRUTH, "DiT-L/2": TRUTH["DiT-B/2"] + 2.1 * float((errors[1] - errors[0]).std(ddof=1))}
    records = [run(name, 0, logs[name], errors[number]) for number, name in enumerate(NAMES)]
    assert first_claim([own for own in records if own.variant in ("DiT-B/2", "DiT-L/2")]).verdict == "contradicted"
    assert first_claim(records).verdict == "undetermined"


def first_claim(records: list[MetricsRecord]) -> Claim:
    return judge("s", records).claims[0]


def test_two_records_of_one_run_are_refused() -> None:
    records = runs(2)
    with pytest.raises(MismatchError, match="DiT-B/2 at step 400000 has two records of training seed 1"):
        judge("s", [*records, records[1]])


def test_a_record_without_a_seed_reads_as_seed_0_and_an_old_verdict_without_a_qualifier() -> None:
    tree = TEMPLATES["DiT-B/2"].model_dump()
    del tree["train_seed"]
    assert MetricsRecord.model_validate(tree).train_seed == 0
    old = {"number": 1, "statement": "", "verdict": "supported", "reason": "", "numbers": {}}
    assert Claim.model_validate(old).reading == "supported"


def test_a_given_spread_enters_no_hash_of_results() -> None:
    plain, given = (study(overrides=overrides) for overrides in ((), ("evaluation.seed_spread=0.1",)))
    assert plain.identities() == given.identities()
    assert plain.hashed() != given.hashed(), "the report is made again"
