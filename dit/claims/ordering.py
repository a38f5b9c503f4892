"""Claims 1 and 2: pairs of variants of which one should be better. Torch-free.

A claim is a conjunction over its pairs. It is supported when every pair is as claimed, each at the study's confidence.
The chance of a wrong support is at most that of one pair (intersection-union test, Berger 1982). It is contradicted
when some pair is reversed, so each pair is tested at a level divided by the number of pairs (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dit.claims import metric_names
from dit.claims.judged import JudgedVariant
from dit.claims.two_level import Runs
from dit.study.records import Claim, ClaimVerdict, Estimate

Pair = tuple[JudgedVariant, JudgedVariant]
"""(better, worse), as the claim predicts."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A pair with the ratio of the metrics, worse to better, above 1 as the claim predicts."""

    pair: Pair
    ratio: Estimate | None
    """None if one of the two cannot be compared."""
    kind: str
    """`as claimed`, `reversed` or `undecided`."""


def ordered(number: int, statement: str, pairs: Sequence[Pair], runs: Runs | None, too_few: str) -> Claim:
    """The verdict on a claim that every pair is in the given order."""
    outcomes = [_outcome(pair, runs, len(pairs)) for pair in pairs]
    verdict, reason = _verdict(outcomes, too_few)
    numbers = {
        "pairs": [
            {
                "better": outcome.pair[0].numbers,
                "worse": outcome.pair[1].numbers,
                "ratio": outcome.ratio and outcome.ratio.model_dump(),
                "outcome": outcome.kind,
            }
            for outcome in outcomes
        ]
    }
    return Claim(number=number, statement=statement, verdict=verdict, reason=reason, numbers=numbers)


def problems(variants: Sequence[JudgedVariant]) -> str:
    """A sentence for each variant that cannot support a verdict; empty if all can."""
    reasons = {variant.spec.name: variant.problem for variant in variants if variant.problem}
    return " ".join(f"{reason}." for reason in reasons.values())


def _verdict(outcomes: Sequence[Outcome], too_few: str) -> tuple[ClaimVerdict, str]:
    if not outcomes:
        return "undetermined", f"Too few variants: {too_few}."
    # A model that has not learned comes first: a pair that is out of order must not count because of it.
    if bad := problems([variant for outcome in outcomes for variant in outcome.pair]):
        return "undetermined", bad
    kinds = {kind: [each for each in outcomes if each.kind == kind] for kind in ("reversed", "undecided")}
    if found := kinds["reversed"]:
        level = f", also at a level divided by {len(outcomes)} pairs" if len(outcomes) > 1 else ""
        return "contradicted", f"The order is the other one{level}: {_shown(found)}."
    if found := kinds["undecided"]:
        return "undetermined", f"The difference is not clear: {_shown(found)}."
    closest = min(outcomes, key=lambda outcome: outcome.ratio.low if outcome.ratio else 0.0)
    if len(outcomes) == 1:
        return "supported", f"In the one pair the distance is lower, as claimed: {_shown([closest])}."
    return "supported", f"In all {len(outcomes)} pairs the distance is lower, as claimed; closest: {_shown([closest])}."


def _outcome(pair: Pair, runs: Runs | None, pairs: int) -> Outcome:
    better, worse = pair
    if runs is None or better.problem or worse.problem:
        return Outcome(pair, None, "undecided")
    names, confidence = (better.spec.name, worse.spec.name), runs.confidence
    ratio = runs.ratio(*names, confidence)
    if ratio.low > 1:
        return Outcome(pair, ratio, "as claimed")
    is_reversed = runs.ratio(*names, 1 - (1 - confidence) / pairs).high < 1
    return Outcome(pair, ratio, "reversed" if is_reversed else "undecided")


def _shown(outcomes: Sequence[Outcome]) -> str:
    """The first pair with its numbers, and how many more there are."""
    first = outcomes[0]
    variants = " and ".join(f"{one.spec.name} {metric_names.interval(one.estimate)}" for one in first.pair)
    ratio = f", ratio {metric_names.interval(first.ratio)}" if first.ratio else ""
    return f"{variants}{ratio}{f' (and {len(outcomes) - 1} more)' if len(outcomes) > 1 else ''}"
