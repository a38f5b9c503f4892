"""Verdicts on the paper's three claims, from intervals and never from point estimates.

verdict = judge("digits", [record for variant in results.variants for record in variant.metrics])
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import combinations, pairwise

import numpy as np

from dit.claims import metric_names, predictors
from dit.claims.judged import Judged, JudgedVariant, judged
from dit.claims.notes import scope
from dit.claims.ordering import ordered, problems
from dit.claims.two_level import GivenSpread
from dit.console.formatting import format_number
from dit.errors import MismatchError, MissingError
from dit.study.records import Claim, ClaimVerdict, MetricsRecord, Verdict
from dit.study.variants import ModelSpec

FEWEST_VARIANTS = 4
"""Fewest points for claim 3: a line has two parameters and fits fewer points too easily."""

SIZE_STATEMENT = "At the same patch size, a larger model is better: its Fréchet distance is lower."
PATCH_STATEMENT = "At the same model size, a smaller patch, which makes more tokens, is better: the distance is lower."
COMPUTE_STATEMENT = (
    "Compute, not size, predicts quality: the distance falls with log Gflops, and follows them more closely than it"
    " follows log parameters."
)
FOR_THIS_SEED = "for this seed"
NO_MODEL = "No model is better than noise"
_MUST_AGREE: dict[str, Callable[[MetricsRecord], object]] = {
    "science_hash": lambda record: record.science_hash,
    "dataset_content": lambda record: record.dataset_content,
    "metric": lambda record: record.metric,
    "decoder": lambda record: record.decoder,
    "evaluator": lambda record: record.evaluator,
    "reference_sha256": lambda record: record.reference_sha256,
    "extractor_sha256": lambda record: record.extractor_sha256,
    # Replicates are compared draw by draw.
    "number of replicates": lambda record: len(record.replicates),
}


def judge(
    study: str, records: Sequence[MetricsRecord], notes: tuple[str, ...] = (), given: GivenSpread | None = None
) -> Verdict:
    """Judge the claims at the largest step that is evaluated for every run in `records`; `notes` go beside them.

    Records of one variant and step differ in `train_seed`. `given` is a spread between seeds from elsewhere, for a
    study that has one seed.

    Raises MissingError when there is no such step, MismatchError when two records, of any steps, cannot be compared.
    """
    step = common_step(records)
    _check_comparable(records)
    found = judged([record for record in records if record.step == step], given)
    claims, headline = judge_claims(found), _headline(found.variants)
    if headline:
        claims = tuple(claim.model_copy(update={"reason": f"{NO_MODEL}."}) for claim in claims)
    first = found.variants[0].first
    return Verdict(
        study=study,
        step=step,
        metric=first.metric,
        claims=claims,
        science_hash=first.science_hash,
        variants=tuple(variant.summary() for variant in found.variants),
        notes=(*notes, *scope(found.runs)),
        headline=headline,
    )


def judge_claims(found: Judged) -> tuple[Claim, ...]:
    """The three claims, judged from variants of one step."""
    claims = _size_claim(found), _patch_claim(found), _compute_claim(found)
    if found.runs is None or found.runs.covers_seeds:
        return claims
    return tuple(_qualified(claim) for claim in claims)


def common_step(records: Iterable[MetricsRecord]) -> int:
    """The largest step at which every run has a record.

    Raises MissingError when there is none.
    """
    steps: dict[tuple[str, int], set[int]] = defaultdict(set)
    for record in records:
        steps[record.variant, record.train_seed].add(record.step)
    shared = set.intersection(*steps.values()) if steps else set()
    if not shared:
        names = dict.fromkeys(variant for variant, _ in steps)
        raise MissingError(
            f"claims: {', '.join(names) or 'the study'} share no evaluated step; evaluate all variants at the same step"
        )
    return max(shared)


def _qualified(claim: Claim) -> Claim:
    decided = claim.verdict != "undetermined"
    return claim.model_copy(update={"qualifier": FOR_THIS_SEED}) if decided else claim


def _headline(variants: Sequence[JudgedVariant]) -> str:
    """One line if no model is better than noise; else empty."""
    if not all(variant.is_noise for variant in variants):
        return ""
    best = min(variants, key=lambda variant: variant.estimate.value)
    return (
        f"{NO_MODEL}: the lowest {metric_names.metric_name(best.first.metric)} is"
        f" {metric_names.interval(best.estimate)}, of {best.spec.name}; the noise floor is"
        f" {format_number(best.first.noise_floor)}. No claim can be judged: train longer, or look at the losses and"
        " samples for what is broken."
    )


def _check_comparable(records: Sequence[MetricsRecord]) -> None:
    first, seen = records[0], set()
    for other in records:
        for field, value in _MUST_AGREE.items():
            ours, theirs = value(first), value(other)
            if ours != theirs:
                raise MismatchError(
                    f"claims: {first.variant} at step {first.step} has {field} {ours}, {other.variant} at step"
                    f" {other.step} has {theirs}: their metrics cannot be compared; evaluate both with one study file"
                )
        run = other.variant, other.train_seed, other.step
        if run in seen:
            raise MismatchError(
                f"claims: {other.variant} at step {other.step} has two records of training seed {other.train_seed};"
                " give each run its own seed"
            )
        seen.add(run)


def _size_claim(found: Judged) -> Claim:
    """Claim 1: pairs of neighbouring sizes with the same patch."""
    groups = _grouped(found.variants, lambda spec: (spec.family, spec.patch))
    pairs = [(larger, smaller) for group in groups for smaller, larger in pairwise(group)]
    return ordered(1, SIZE_STATEMENT, pairs, found.runs, "no two variants share a patch size")


def _patch_claim(found: Judged) -> Claim:
    """Claim 2: all pairs of patches of the same size."""
    groups = _grouped(found.variants, lambda spec: (spec.family, spec.size))
    pairs = [(finer, coarser) for group in groups for finer, coarser in combinations(group, 2)]
    return ordered(2, PATCH_STATEMENT, pairs, found.runs, "no two variants are one model at two patch sizes")


def _grouped(
    variants: Iterable[JudgedVariant], key: Callable[[ModelSpec], tuple[object, ...]]
) -> Iterable[list[JudgedVariant]]:
    groups: dict[tuple[object, ...], list[JudgedVariant]] = defaultdict(list)
    for variant in variants:
        groups[key(variant.spec)].append(variant)
    return groups.values()


def _compute_claim(found: Judged) -> Claim:
    """Claim 3: all variants together."""
    verdict: ClaimVerdict = "undetermined"
    variants = found.variants
    numbers: dict[str, object] = {"variants": [variant.numbers for variant in variants]}
    reason = _too_few_axes(variants) or problems(variants)
    if not reason and found.runs is not None:
        comparison = predictors.compare(
            [variant.first.gflops for variant in variants],
            [variant.first.parameters for variant in variants],
            np.array([math.log(variant.estimate.value) for variant in variants]),
            found.runs.draws(predictors.DRAWS),
            found.runs.confidence,
        )
        verdict, reading = _weigh(comparison)
        spread = f"{comparison.difference:.3f} [{comparison.low:.3f}, {comparison.high:.3f}]"
        reason = (
            f"Over {len(variants)} variants log Gflops explain {comparison.gflops.r2:.1%} of the variance of the log"
            f" distance, log parameters {comparison.parameters.r2:.1%}; the difference in R² is {spread}, {reading}."
        )
        numbers |= {**asdict(comparison), "draws": predictors.DRAWS}
    return Claim(number=3, statement=COMPUTE_STATEMENT, verdict=verdict, reason=reason, numbers=numbers)


def _weigh(comparison: predictors.Comparison) -> tuple[ClaimVerdict, str]:
    """Supported only if Gflops fit better in the whole interval and the whole interval of the slope is negative."""
    if comparison.rises:
        return "contradicted", "yet the distance rises with Gflops"
    if comparison.follows_parameters:
        return "contradicted", "below 0 throughout"
    if comparison.gflops.slope_high >= 0:
        return "undetermined", "yet whether the distance falls with Gflops is open"
    if comparison.low > 0 and comparison.difference > 0:
        return "supported", "above 0 throughout"
    if comparison.high < 0:
        return "undetermined", "below 0, but not at the stricter level of a contradiction"
    return "undetermined", "which does not exclude 0"


def _too_few_axes(variants: Sequence[JudgedVariant]) -> str:
    if len(variants) < FEWEST_VARIANTS:
        return f"Too few variants: {len(variants)}, and a comparison of two lines needs {FEWEST_VARIANTS}."
    if len({(variant.spec.family, variant.spec.size) for variant in variants}) == len(variants):
        return "No model is studied at two patch sizes: Gflops and parameters grow together and cannot be told apart."
    return ""
