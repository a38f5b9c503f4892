"""What a budget can decide, and the cheapest budget for each claim. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dit.planning.accelerators import CPU
from dit.planning.claims import PlannedClaim, planned_claims
from dit.planning.cost import Plan, plan
from dit.planning.power import Outcome, Trial, compute_outcome, order_outcome, simulate
from dit.planning.prior import Prior, Range
from dit.study.config import StudyConfig
from dit.study.variants import ModelSpec

SURE = 0.9
"""Probability with which the cheapest budget supports a claim."""
MOST_SEEDS = 10
_LENGTHS = 24
"""Lengths of training that are tried."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a study with these seeds costs."""

    hours: float
    """Wall hours of all stages."""
    device_hours: float | None
    """GPU-hours; None on a CPU."""
    disk: float
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A claim at one length of training."""

    claim: PlannedClaim
    outcomes: tuple[Outcome, ...]
    """One for each number of seeds; empty if the study cannot judge the claim, or nothing is known of a variant."""
    closest: tuple[ModelSpec, ModelSpec] | None
    """The pair (better, worse) whose expected values are least apart; None for claim 3."""


@dataclass(frozen=True, slots=True)
class Cheapest:
    """The cheapest budget that supports a claim with a probability of `SURE`, evaluated once, at its last step."""

    steps: int
    seeds: int
    outcome: Outcome
    cost: Cost


def decisions(config: StudyConfig, prior: Prior, step: int, seeds: Sequence[int]) -> list[Decision]:
    """Each claim at a step, for each number of seeds."""
    rows = []
    for claim in planned_claims(config.specs):
        outcomes = [outcome_of(claim, config, prior, step, count) for count in seeds]
        known = tuple(outcome for outcome in outcomes if outcome is not None)
        rows.append(Decision(claim, known, _closest(claim, config, prior, step) if known else None))
    return rows


def outcome_of(claim: PlannedClaim, config: StudyConfig, prior: Prior, step: int, seeds: int) -> Outcome | None:
    """Probabilities of a claim's verdicts in the study `config` at a step; None if they are not known."""
    images, inputs = config.sampling.num_samples, config.dataset.inputs
    expected = [prior.expected(spec.name, step, images) for spec in claim.variants]
    known = [value for value in expected if value is not None]
    if not known or len(known) < len(expected):
        return None
    given = prior.seeds or prior.sampling
    # Between runs, without what a seed does to all variants alike.
    degrees = (len(config.specs) - 1) * (seeds - 1) if seeds > 1 else given.degrees
    log_sd = prior.run_sd(images)
    if not degrees or not log_sd:
        return None
    trial = Trial(log_sd, seeds, degrees, config.evaluation.confidence)
    simulated = simulate(known, trial)
    if not claim.pairs:
        gflops, parameters = zip(
            *((spec.gflops(inputs), spec.parameters(inputs)) for spec in claim.variants), strict=True
        )
        return compute_outcome(simulated, gflops, parameters)
    place = claim.variants.index
    return order_outcome(simulated, [(place(better), place(worse)) for better, worse in claim.pairs])


def cheapest(claim: PlannedClaim, config: StudyConfig, prior: Prior) -> Cheapest | None:
    """The cheapest budget for a claim with only the variants that it needs; None if there is none in what is known."""
    if not claim.variants:
        return None
    least = config.model_copy(update={"variants": tuple(spec.name for spec in claim.variants)})
    candidates = sorted(_candidates(least, prior), key=lambda candidate: candidate[2].hours)
    for steps, seeds, cost in candidates:
        outcome = outcome_of(claim, least, prior, steps, seeds)
        if outcome is not None and outcome.supported >= SURE:
            return Cheapest(steps, seeds, outcome, cost)
    return None


def cost_of(planned: Plan, seeds: int) -> Cost:
    """The cost of a study whose plan is for one seed, with this many."""
    prepare = planned.prepare_hours or 0.0
    hours = prepare + seeds * (planned.hours - prepare)
    disk = planned.disk
    devices = None if planned.accelerator.name == CPU else planned.count * hours
    return Cost(hours, devices, (disk.shards or 0.0) + seeds * (disk.checkpoints + disk.samples))


def lengths(prior: Prior, variants: Sequence[str], own: int) -> list[int]:
    """Lengths of training within the variants' curves, in equal ratios and of two digits, with the study's own."""
    first, last = prior.reach(variants)
    if first > last:
        return []
    raw = (first * (last / first) ** (i / (_LENGTHS - 1)) for i in range(_LENGTHS))
    tidy = {int(float(f"{value:.2g}")) for value in raw}
    return sorted({step for step in {*tidy, first, last, own} if first <= step <= last})


def _candidates(config: StudyConfig, prior: Prior) -> Iterator[tuple[int, int, Cost]]:
    for steps in lengths(prior, config.variants, config.train.steps):
        planned = plan(_trained_for(config, steps))
        for seeds in range(1, MOST_SEEDS + 1 if prior.seeds else 2):
            yield steps, seeds, cost_of(planned, seeds)


def one_seed(config: StudyConfig) -> StudyConfig:
    """The study with a single training of each variant."""
    return config.model_copy(update={"seeds": 1})


def _trained_for(config: StudyConfig, steps: int) -> StudyConfig:
    return one_seed(config).model_copy(
        update={
            "train": config.train.model_copy(update={"steps": steps}),
            "evaluation": config.evaluation.model_copy(update={"at_steps": (steps,)}),
        }
    )


def _closest(claim: PlannedClaim, config: StudyConfig, prior: Prior, step: int) -> tuple[ModelSpec, ModelSpec] | None:
    def apart(pair: tuple[ModelSpec, ModelSpec]) -> float:
        better, worse = (_middle(prior.expected(spec.name, step, config.sampling.num_samples)) for spec in pair)
        return math.log(worse / better)

    return min(claim.pairs, key=apart, default=None)


def _middle(value: Range | None) -> float:
    return math.nan if value is None else value.middle
