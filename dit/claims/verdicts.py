"""Verdicts on the paper's three claims, from intervals and never from point estimates.

verdict = judge("digits", [record for variant in results.variants for record in variant.metrics])
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import combinations, pairwise

from dit.claims import metric_names, predictors
from dit.console.formatting import format_number
from dit.errors import MismatchError, MissingError
from dit.study.records import Claim, ClaimVerdict, Estimate, MetricsRecord, Verdict
from dit.study.variants import ModelSpec, resolve

NOISE_SHARE = 0.8
"""A model whose interval reaches above this share of the noise floor has learned too little to be compared."""
FEWEST_VARIANTS = 4
"""Fewest points for claim 3: a line has two parameters and fits fewer points too easily."""

SIZE_STATEMENT = "At the same patch size, a larger model is better: its Fréchet distance is lower."
PATCH_STATEMENT = "At the same model size, a smaller patch, which makes more tokens, is better: the distance is lower."
COMPUTE_STATEMENT = (
    "Compute, not size, predicts quality: the distance falls with log Gflops, and follows them more closely than it"
    " follows log parameters."
)
SCOPE = (
    "The intervals cover the noise of sampling, a finite set of images. They do not cover the noise of training:"
    " another seed gives another model."
)
NO_MODEL = "No model is better than noise"
Pair = tuple[MetricsRecord, MetricsRecord]
"""(better, worse), as the claim predicts."""
_MUST_AGREE = (
    "science_hash",
    "dataset_content",
    "metric",
    "decoder",
    "evaluator",
    "reference_sha256",
    "extractor_sha256",
)


def judge(study: str, records: Sequence[MetricsRecord], notes: tuple[str, ...] = ()) -> Verdict:
    """Judge the claims at the largest step that is evaluated for every variant in `records`; `notes` go beside them.

    Raises MissingError when there is no such step, MismatchError when two records, of any steps, cannot be compared.
    """
    step = common_step(records)
    _check_comparable(records)
    chosen = sorted((record for record in records if record.step == step), key=_order)
    claims: tuple[Claim, ...] = (_size_claim(chosen), _patch_claim(chosen), _compute_claim(chosen))
    headline = _headline(chosen)
    if headline:
        claims = tuple(claim.model_copy(update={"reason": f"{NO_MODEL}."}) for claim in claims)
    return Verdict(
        study=study,
        step=step,
        metric=chosen[0].metric,
        claims=claims,
        science_hash=chosen[0].science_hash,
        notes=(*notes, SCOPE),
        headline=headline,
    )


def common_step(records: Iterable[MetricsRecord]) -> int:
    """The largest step at which every variant has a record.

    Raises MissingError when there is none.
    """
    steps: dict[str, set[int]] = defaultdict(set)
    for record in records:
        steps[record.variant].add(record.step)
    shared = set.intersection(*steps.values()) if steps else set()
    if not shared:
        raise MissingError(
            f"claims: {', '.join(steps) or 'the study'} share no evaluated step; evaluate all variants at the same step"
        )
    return max(shared)


def primary(record: MetricsRecord) -> Estimate:
    """The value and interval of the study's primary metric, which the claims are about."""
    return record.metrics[record.metric]


def unusable(record: MetricsRecord) -> str | None:
    """Why a record cannot support a verdict (not finite, not positive, no better than noise); None if it can."""
    estimate = primary(record)
    shown = f"{metric_names.metric_name(record.metric)} {metric_names.interval(estimate)}"
    if not all(math.isfinite(value) and value > 0 for value in (estimate.value, estimate.low, estimate.high)):
        return f"{record.variant} has {shown}, which is not a positive number"
    if _is_noise(record):
        return (
            f"{record.variant} is no better than noise: {shown} reaches above"
            f" {format_number(NOISE_SHARE * record.noise_floor)},"
            f" {NOISE_SHARE:.0%} of the noise floor {format_number(record.noise_floor)}"
        )
    if len(record.replicates) < 2:
        return f"{record.variant} has {shown} without bootstrap replicates, so its uncertainty is unknown"
    return None


def _is_noise(record: MetricsRecord) -> bool:
    return not primary(record).high <= NOISE_SHARE * record.noise_floor


def _headline(records: Sequence[MetricsRecord]) -> str:
    """One line if no model is better than noise; else empty."""
    if not all(_is_noise(record) for record in records):
        return ""
    best = min(records, key=lambda record: primary(record).value)
    return (
        f"{NO_MODEL}: the lowest {metric_names.metric_name(best.metric)} is {metric_names.interval(primary(best))}, of"
        f" {best.variant}; the noise floor is {format_number(best.noise_floor)}. No claim can be judged: train longer,"
        " or look at the losses and samples for what is broken."
    )


def _order(record: MetricsRecord) -> tuple[str, int, int]:
    spec = resolve(record.variant)
    return spec.family, spec.patch, spec.size_index


def _check_comparable(records: Sequence[MetricsRecord]) -> None:
    first = records[0]
    for other in records[1:]:
        for field in _MUST_AGREE:
            ours, theirs = getattr(first, field), getattr(other, field)
            if ours != theirs:
                raise MismatchError(
                    f"claims: {first.variant} at step {first.step} has {field} {ours}, {other.variant} at step"
                    f" {other.step} has {theirs}: their metrics cannot be compared; evaluate both with one study file"
                )


def _size_claim(records: Sequence[MetricsRecord]) -> Claim:
    """Claim 1: pairs of neighbouring sizes with the same patch."""
    groups = _grouped(records, lambda spec: (spec.family, spec.patch))
    pairs = [(larger, smaller) for group in groups for smaller, larger in pairwise(group)]
    return _ordered(1, SIZE_STATEMENT, pairs, "no two variants share a patch size")


def _patch_claim(records: Sequence[MetricsRecord]) -> Claim:
    """Claim 2: all pairs of patches of the same size."""
    groups = _grouped(records, lambda spec: (spec.family, spec.size))
    pairs = [(finer, coarser) for group in groups for finer, coarser in combinations(group, 2)]
    return _ordered(2, PATCH_STATEMENT, pairs, "no two variants are one model at two patch sizes")


def _grouped(
    records: Iterable[MetricsRecord], key: Callable[[ModelSpec], tuple[object, ...]]
) -> Iterable[list[MetricsRecord]]:
    groups: dict[tuple[object, ...], list[MetricsRecord]] = defaultdict(list)
    for record in records:
        groups[key(resolve(record.variant))].append(record)
    return groups.values()


def _ordered(number: int, statement: str, pairs: Sequence[Pair], too_few: str) -> Claim:
    """The verdict on a claim that every pair is in the given order."""
    bad = _bad([record for pair in pairs for record in pair])
    reversed_, overlapping = ([pair for pair in pairs if _outcome(pair) == kind] for kind in ("reversed", "overlap"))
    verdict: ClaimVerdict = "undetermined"
    if not pairs:
        reason = f"Too few variants: {too_few}."
    # Unusable records come first: a pair that is out of order must not count if one of its models has not learned.
    elif bad:
        reason = bad
    elif reversed_:
        verdict, reason = "contradicted", f"Apart, but in the other order: {_shown(reversed_)}."
    elif overlapping:
        reason = f"The intervals overlap: {_shown(overlapping)}."
    else:
        closest = min(pairs, key=lambda pair: primary(pair[1]).low / primary(pair[0]).high)
        verdict = "supported"
        reason = (
            f"In {'the one pair' if len(pairs) == 1 else f'all {len(pairs)} pairs'} the intervals lie apart, in the"
            f" order claimed{'' if len(pairs) == 1 else '; closest'}: {_shown([closest])}."
        )
    numbers = {
        "pairs": [
            {"better": _numbers(better), "worse": _numbers(worse), "outcome": _outcome((better, worse))}
            for better, worse in pairs
        ]
    }
    return Claim(number=number, statement=statement, verdict=verdict, reason=reason, numbers=numbers)


def _shown(pairs: Sequence[Pair]) -> str:
    """The first pair with its numbers, and how many more there are."""
    first = " and ".join(f"{record.variant} {metric_names.interval(primary(record))}" for record in pairs[0])
    return f"{first} (and {len(pairs) - 1} more)" if len(pairs) > 1 else first


def _outcome(pair: Pair) -> str:
    ours, theirs = primary(pair[0]), primary(pair[1])
    if ours.high < theirs.low:
        return "as claimed"
    return "reversed" if ours.low > theirs.high else "overlap"


def _compute_claim(records: Sequence[MetricsRecord]) -> Claim:
    """Claim 3: all variants together."""
    verdict: ClaimVerdict = "undetermined"
    numbers: dict[str, object] = {"variants": [_numbers(record) for record in records]}
    reason = _too_few_axes(records) or _bad(records)
    if not reason:
        comparison = predictors.compare(
            [record.gflops for record in records],
            [record.parameters for record in records],
            [primary(record).value for record in records],
            [record.replicates for record in records],
            records[0].confidence,
        )
        verdict, reading = _weigh(comparison)
        spread = f"{comparison.difference:.3f} [{comparison.low:.3f}, {comparison.high:.3f}]"
        reason = (
            f"Over {len(records)} variants log Gflops explain {comparison.gflops.r2:.1%} of the variance of the log"
            f" distance, log parameters {comparison.parameters.r2:.1%}; the difference in R² is {spread}, {reading}."
        )
        numbers |= {**asdict(comparison), "draws": predictors.DRAWS}
    return Claim(number=3, statement=COMPUTE_STATEMENT, verdict=verdict, reason=reason, numbers=numbers)


def _weigh(comparison: predictors.Comparison) -> tuple[ClaimVerdict, str]:
    """Supported only if Gflops fit better in the whole interval and the whole interval of the slope is negative."""
    slope = comparison.gflops
    if slope.slope_low > 0:
        return "contradicted", "yet the distance rises with Gflops"
    if comparison.high < 0 and comparison.difference < 0:
        return "contradicted", "below 0 throughout"
    if slope.slope_high >= 0:
        return "undetermined", "yet whether the distance falls with Gflops is open"
    if comparison.low > 0 and comparison.difference > 0:
        return "supported", "above 0 throughout"
    return "undetermined", "which does not exclude 0"


def _too_few_axes(records: Sequence[MetricsRecord]) -> str:
    if len(records) < FEWEST_VARIANTS:
        return f"Too few variants: {len(records)}, and a comparison of two lines needs {FEWEST_VARIANTS}."
    specs = [resolve(record.variant) for record in records]
    if len({(spec.family, spec.size) for spec in specs}) == len(specs):
        return "No model is studied at two patch sizes: Gflops and parameters grow together and cannot be told apart."
    return ""


def _bad(records: Iterable[MetricsRecord]) -> str:
    """A sentence for each record that cannot support a verdict; empty if all can."""
    reasons = {record.variant: reason for record in records if (reason := unusable(record))}
    return " ".join(f"{reason}." for reason in reasons.values())


def _numbers(record: MetricsRecord) -> dict[str, object]:
    estimate = primary(record)
    return {
        "variant": record.variant,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "confidence": record.confidence,
    }
