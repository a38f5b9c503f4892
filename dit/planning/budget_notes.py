"""The sentences below the tables of what a budget can decide. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dit.console.formatting import format_count
from dit.planning.budget import Decision, decisions
from dit.planning.prior import Prior, Range
from dit.study.config import StudyConfig

_WHOLE = 20
"""Numbers from here on are shown without decimals."""
_CLEAR = 0.5
"""Share of the noise's metric below which healthy models are clearly better than noise."""

_EXACT = 1000
"""Degrees of freedom from which on a spread is as good as exact."""


def budget_notes(config: StudyConfig, prior: Prior) -> Iterator[str]:
    """What a reader of the tables has to know, a paragraph each."""
    step = config.train.steps
    if prior.known_at(step, config.variants):
        yield from _closest_pairs(config, prior, step)
        yield _noise(config, prior, step)
    else:
        yield _beyond(config, prior, step)
    yield _spread(prior)
    yield prior.source
    yield from prior.notes


def metric_label(config: StudyConfig) -> str:
    """The metric's name in a sentence."""
    return "FID" if config.evaluation.metric == "fid" else "Fréchet distance"


def shown_range(value: Range | None) -> str | None:
    """An expected metric as `71.9`, or as `87 to 140`; None as it is."""
    if value is None:
        return None
    if math.isclose(value.low, value.high, rel_tol=0.01):
        return f"{value.middle:.3g}"
    return " to ".join(f"{end:.0f}" if end >= _WHOLE else f"{end:.2g}" for end in (value.low, value.high))


def _closest_pairs(config: StudyConfig, prior: Prior, step: int) -> Iterator[str]:
    for decision in decisions(config, prior, step, (1,)):
        if decision.closest is not None:
            yield f"Claim {decision.claim.label[0]}: {_apart(config, prior, step, decision)}"


def _apart(config: StudyConfig, prior: Prior, step: int, decision: Decision) -> str:
    assert decision.closest is not None
    better, worse = decision.closest
    values = [prior.expected(spec.name, step, config.sampling.num_samples) for spec in (better, worse)]
    first, second = (value for value in values if value is not None)
    lower = min(first.middle, second.middle)
    difference = abs(second.middle - first.middle)
    apart = f"{difference:.2g} apart ({difference / lower:.0%})"
    order = "" if second.middle > first.middle else ", in the other order"
    return (
        f"its closest pair is {worse.name} at {shown_range(second)} and {better.name} at {shown_range(first)}, about"
        f" {apart}{order}."
    )


def _noise(config: StudyConfig, prior: Prior, step: int) -> str:
    images = config.sampling.num_samples
    known = [value for name in config.variants if (value := prior.expected(name, step, images)) is not None]
    low, high, noise = min(value.low for value in known), max(value.high for value in known), prior.noise_floor
    expected = (
        f"Healthy models are expected at {shown_range(Range(low, high))} after {format_count(step)} steps, noise is at"
        f" {noise:.3g}"
    )
    if high > _CLEAR * noise:
        return f"{expected}: at this length, a {metric_label(config)} does not tell a broken model from a healthy one."
    return (
        f"{expected}. A {metric_label(config)} near {noise:.3g} means that something is broken, not that the training"
        " was too short."
    )


def _beyond(config: StudyConfig, prior: Prior, step: int) -> str:
    known = [prior.reach([name]) for name in config.variants if name in prior.curves]
    if not known:
        return f"Nothing is known about {', '.join(config.variants)}."
    first, last = min(first for first, _ in known), max(last for _, last in known)
    return (
        f"{format_count(step)} steps: not known. The curves reach from {format_count(first)} to {format_count(last)}"
        f" steps, and the {metric_label(config)} is not extrapolated beyond them. {prior.limits}".rstrip()
    )


def _spread(prior: Prior) -> str:
    if prior.seeds is None:
        return (
            "How far seeds lie apart is not known, so the probabilities are for the seed that is trained: another seed"
            " may give another verdict. Run the study with three seeds to know it."
        )
    seeds = prior.seeds
    given = f"--set evaluation.seed_spread={prior.seed_sd:.2g}"
    if seeds.degrees < _EXACT:
        given += f" --set evaluation.seed_spread_degrees_of_freedom={seeds.degrees}"
    return (
        f"Trainings of one model that differ in their seed lie {seeds.log_sd:.1%} apart (standard deviation of the log"
        f" metric, from {seeds.source}). Several seeds are judged with their own spread, one seed with this one:"
        f" {given}."
    )
