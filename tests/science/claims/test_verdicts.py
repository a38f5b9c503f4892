"""Verdicts on the paper's own numbers, and under changes that alter them or must not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_records import metrics_record, study

from dit.claims.judged import NOISE_SHARE
from dit.claims.notes import notes
from dit.claims.verdicts import judge
from dit.errors import MismatchError, MissingError
from dit.study.config import StudyConfig
from dit.study.paper import paper
from dit.study.records import Claim, Estimate, MetricsRecord
from dit.study.variants import resolve

PAPER = study("imagenet256", 1000)
LATENT = PAPER.dataset.inputs
STUDIED = ("DiT-B/2", "DiT-L/2", "DiT-XL/2", "DiT-XL/4")


@cache
def base(variant: str) -> MetricsRecord:
    return metrics_record(PAPER, resolve(variant), 400_000)


def record(variant: str, value: float, spread: float = 0.01) -> MetricsRecord:
    """A metric with an interval of +-2 spreads (relative) and normal replicates of that spread."""
    noise = np.random.default_rng([*variant.encode()]).standard_normal(200)
    return base(variant).model_copy(
        update={
            "metrics": {"fid": Estimate(value=value, low=value * (1 - 2 * spread), high=value * (1 + 2 * spread))},
            "replicates": tuple(value * (1 + spread * (noise - noise.mean()))),
        }
    )


def published(variants: tuple[str, ...] | None = None, spread: float = 0.001) -> list[MetricsRecord]:
    models = paper().models
    return [record(name, models[name].fid_400k, spread) for name in variants or models]


def claims(records: list[MetricsRecord]) -> tuple[Claim, ...]:
    return judge("s", records).claims


def verdicts(records: list[MetricsRecord]) -> list[str]:
    return [claim.verdict for claim in claims(records)]


def with_value(records: list[MetricsRecord], variant: str, value: float, spread: float = 0.001) -> list[MetricsRecord]:
    return [record(own.variant, value, spread) if own.variant == variant else own for own in records]


@pytest.mark.parametrize("variants", [None, STUDIED], ids=["all 12 models", "the four of the study"])
def test_the_papers_numbers_support_all_three_claims(variants: tuple[str, ...] | None) -> None:
    assert verdicts(published(variants)) == ["supported"] * 3


def test_gflops_predict_the_papers_numbers_better_than_parameters() -> None:
    numbers = claims(published())[2].numbers
    assert numbers["gflops"]["r2"] > numbers["parameters"]["r2"]
    assert numbers["gflops"]["loo_rmse"] < numbers["parameters"]["loo_rmse"]
    assert numbers["gflops"]["spearman"] < numbers["parameters"]["spearman"] < 0
    assert numbers["low"] <= numbers["difference"] <= numbers["high"]


def test_fits_agree_with_numpys_least_squares() -> None:
    records = published(STUDIED)
    x = np.log([own.parameters for own in records])
    y = np.log([own.metrics["fid"].value for own in records])
    slope, intercept = np.polyfit(x, y, 1)
    left_out = []
    for i in range(len(x)):
        keep = np.arange(len(x)) != i
        left_out.append(y[i] - np.polyval(np.polyfit(x[keep], y[keep], 1), x[i]))
    fit = claims(records)[2].numbers["parameters"]
    assert fit["slope"] == pytest.approx(slope)
    assert fit["intercept"] == pytest.approx(intercept)
    assert fit["r2"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert fit["loo_rmse"] == pytest.approx(np.sqrt(np.mean(np.square(left_out))), rel=1e-6)


def test_overlapping_intervals_are_undetermined_and_named() -> None:
    first, second, _ = claims(with_value(published(STUDIED), "DiT-XL/2", 23.0, spread=0.02))
    assert first.verdict == "undetermined"
    assert "DiT-XL/2 23.00 [22.08, 23.92] and DiT-L/2 23.33 [23.28, 23.38]" in first.reason
    assert second.verdict == "supported"


def test_a_larger_model_with_a_higher_interval_contradicts_claim_1() -> None:
    first = claims(with_value(published(STUDIED), "DiT-L/2", 60.0))[0]
    assert first.verdict == "contradicted"
    assert "DiT-L/2 60.00 [59.88, 60.12] and DiT-B/2 43.47" in first.reason


def test_a_larger_patch_with_a_lower_interval_contradicts_claim_2() -> None:
    assert claims(with_value(published(STUDIED), "DiT-XL/4", 10.0))[1].verdict == "contradicted"


def test_a_metric_that_follows_parameters_contradicts_claim_3() -> None:
    records = [record(name, 300.0 * (resolve(name).parameters(LATENT) / 3e7) ** -0.5) for name in paper().models]
    records = [own for own in records if own.metrics["fid"].high < NOISE_SHARE * 309]
    third = claims(records)[2]
    assert third.verdict == "contradicted"
    assert third.numbers["high"] < 0


def test_a_metric_that_rises_with_gflops_contradicts_claim_3() -> None:
    records = [record(name, 20 * resolve(name).gflops(LATENT) ** 0.4) for name in STUDIED]
    assert claims(records)[2].verdict == "contradicted"


def test_a_model_no_better_than_noise_leaves_its_claims_undetermined() -> None:
    records = with_value(published(STUDIED), "DiT-XL/4", 250.0)
    first, second, third = claims(records)
    assert first.verdict == "supported", "claim 1 compares patch 2 only"
    for claim in (second, third):
        assert claim.verdict == "undetermined"
        assert "DiT-XL/4 is no better than noise" in claim.reason
        assert "250" in claim.reason
        assert "309" in claim.reason


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_metric_that_is_not_finite_and_positive_leaves_the_claims_undetermined(value: float) -> None:
    assert verdicts(with_value(published(STUDIED), "DiT-XL/2", value)) == ["undetermined"] * 3


def test_one_variant_is_too_few_for_every_claim() -> None:
    one = claims(published(("DiT-XL/2",)))
    assert all(claim.verdict == "undetermined" and claim.reason.startswith("Too few variants") for claim in one)


def test_one_patch_size_cannot_tell_gflops_from_parameters() -> None:
    first, second, third = claims(published(("DiT-S/2", "DiT-B/2", "DiT-L/2", "DiT-XL/2")))
    assert (first.verdict, second.verdict, third.verdict) == ("supported", "undetermined", "undetermined")
    assert "two patch sizes" in third.reason


def test_the_largest_step_of_all_variants_is_judged() -> None:
    early = [own.model_copy(update={"step": 100_000}) for own in published(STUDIED)]
    late = published(STUDIED)[:-1]
    assert judge("s", early + late).step == 100_000
    with pytest.raises(MissingError, match="share no evaluated step"):
        judge("s", [early[0], late[1]])


@pytest.mark.parametrize("field", ["science_hash", "dataset_content", "reference_sha256", "extractor_sha256"])
def test_records_that_differ_in_a_key_field_are_refused(field: str) -> None:
    records = published(STUDIED)
    records[1] = records[1].model_copy(update={field: "other"})
    with pytest.raises(MismatchError, match=rf"has {field} (other|same), DiT-\S+ has {field} (other|same)|{field}"):
        judge("s", records)


@pytest.mark.parametrize("field", ["decoder", "reference_sha256", "evaluator"])
def test_other_steps_measured_differently_are_refused(field: str) -> None:
    """Also if the judged step is consistent, because charts and runs.csv show the other steps beside it."""
    early = [own.model_copy(update={"step": 100_000, field: "old"}) for own in published(STUDIED)]
    with pytest.raises(MismatchError, match=rf"DiT-B/2 at step 100000 has {field} old, DiT-B/2 at step 400000 has"):
        judge("s", early + published(STUDIED))


def test_the_verdict_notes_that_intervals_exclude_training_noise() -> None:
    assert "another seed" in " ".join(judge("s", published(STUDIED)).notes)


@pytest.mark.parametrize(("config", "named"), [(PAPER, True), (study(), False)], ids=["ImageNet", "another dataset"])
def test_the_papers_seeds_are_noted_on_its_own_dataset_only(config: StudyConfig, named: bool) -> None:
    assert ("19.5, 18.1" in " ".join(notes(config))) is named


@pytest.mark.parametrize(("images", "warned"), [(40, True), (2047, True), (9999, True), (10_000, False)])
def test_distances_from_few_images_carry_a_warning(images: int, warned: bool) -> None:
    told = notes(study(overrides=(f"sampling.num_samples={images}",)))
    assert [note.startswith(f"Warning: every distance is from {images:,} images") for note in told] == [True] * warned


def test_no_model_better_than_noise_is_one_line_with_the_best_and_the_floor() -> None:
    verdict = judge("s", [record(name, 250.0 + place) for place, name in enumerate(STUDIED)])
    assert "No model is better than noise: the lowest FID is 250.0 [245.0, 255.0], of DiT-B/2" in verdict.headline
    assert "309" in verdict.headline
    assert [claim.verdict for claim in verdict.claims] == ["undetermined"] * 3
    assert not any("DiT" in claim.reason for claim in verdict.claims)
    assert judge("s", with_value(published(STUDIED), "DiT-XL/4", 250.0)).headline == ""


values = st.lists(st.floats(5, 200), min_size=4, max_size=4)
spreads = st.lists(st.floats(0.001, 0.2), min_size=4, max_size=4)


def study_of(sizes: list[float], widths: list[float]) -> list[MetricsRecord]:
    return [record(name, size, width) for name, size, width in zip(STUDIED, sizes, widths, strict=True)]


@given(values, spreads, st.permutations(range(4)))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_records_does_not_matter(sizes: list[float], widths: list[float], order: list[int]) -> None:
    records = study_of(sizes, widths)
    assert judge("s", [records[i] for i in order]) == judge("s", records)


@given(values, spreads, st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_the_unit_of_the_metric_does_not_matter(sizes: list[float], widths: list[float], factor: float) -> None:
    records = study_of(sizes, widths)
    scaled = [
        own.model_copy(
            update={
                "metrics": {
                    "fid": Estimate(**{k: v * factor for k, v in own.metrics["fid"].model_dump().items()}),
                },
                "replicates": tuple(value * factor for value in own.replicates),
                "noise_floor": own.noise_floor * factor,
            }
        )
        for own in records
    ]
    assert verdicts(scaled) == verdicts(records)


@given(values, spreads, st.floats(1, 8))
@settings(max_examples=40, deadline=None)
def test_wider_intervals_never_decide_a_claim(sizes: list[float], widths: list[float], factor: float) -> None:
    narrow, wide = study_of(sizes, widths), study_of(sizes, [min(width * factor, 0.45) for width in widths])
    for before, after in zip(claims(narrow)[:2], claims(wide)[:2], strict=True):
        assert after.verdict in (before.verdict, "undetermined")
    assert "supported" not in verdicts(wide)[2:] or verdicts(narrow)[2] == "supported"


@given(values, spreads)
@settings(max_examples=25, deadline=None)
def test_exchanging_two_models_turns_supported_into_contradicted(sizes: list[float], widths: list[float]) -> None:
    records = study_of(sizes, widths)
    fine, coarse = records[2], records[3]
    exchanged = [
        *records[:2],
        fine.model_copy(update={"metrics": coarse.metrics, "replicates": coarse.replicates}),
        coarse.model_copy(update={"metrics": fine.metrics, "replicates": fine.replicates}),
    ]
    opposite = {"supported": "contradicted", "contradicted": "supported", "undetermined": "undetermined"}
    assert verdicts(exchanged)[1] == opposite[verdicts(records)[1]]


def test_wide_intervals_leave_claim_3_undetermined() -> None:
    assert verdicts(published(STUDIED, spread=0.02))[2] == "supported"
    assert verdicts(published(STUDIED, spread=0.4))[2] == "undetermined"
