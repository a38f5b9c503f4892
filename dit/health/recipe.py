"""Check 0, `recipe`: whether a study's numbers allow its models to be healthy at all. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dit.health.gate import Reading
from dit.study.config import StudyConfig
from dit.study.learning_rate import steps_until
from dit.study.variants import ModelSpec

EMA_SHARE = 0.02
"""Largest share of the initial weights in the average at the first sampled step."""


@dataclass(frozen=True)
class RecipeView:
    """A study and one of its variants."""

    config: StudyConfig
    spec: ModelSpec


def unit_steps(config: StudyConfig, spec: ModelSpec) -> float:
    """Return tau, the steps at the full learning rate in which the output of a new model reaches its target's size.

    Adam moves each weight of the zero-initialised head by about the learning rate per step (Kingma & Ba 2015, section
    2.1), and an output is a sum over `hidden` of them.
    """
    return 1 / (config.train.learning_rate * spec.hidden)


def first_deadline(config: StudyConfig, spec: ModelSpec) -> int:
    """Return the step from which a healthy model knows more than the variances of its channels.

    Steps of a warm-up or a cosine count by their share of the rate. The step is past the end where they never suffice.
    """
    steps = steps_until(config.train, 6 * unit_steps(config, spec))
    return math.ceil(50 + (config.train.steps if math.isinf(steps) else steps))


def initial_share(config: StudyConfig, step: int) -> float:
    """Return the share of the initial weights in the average after `step` updates: decay^step."""
    return float(config.train.ema_decay**step)


def recipe(view: RecipeView) -> Reading:
    """Return the first number that rules out a healthy model; a short run is a warning, an impossible one a stop."""
    return next(_problems(view.config, view.spec), Reading(unit_steps(view.config, view.spec), "above 1"))


def warnings(config: StudyConfig) -> list[str]:
    """Return what the check finds, without running a variant; variants with the same finding share a line."""
    variants: dict[str, list[str]] = {}
    for spec in config.specs:
        if message := recipe(RecipeView(config, spec)).message("recipe"):
            variants.setdefault(message, []).append(spec.name)
    return [f"{', '.join(names)}: {message}" for message, names in variants.items()]


def _problems(config: StudyConfig, spec: ModelSpec) -> Iterator[Reading]:
    tau, rate = unit_steps(config, spec), config.train.learning_rate
    first, values = config.evaluation.at_steps[0], spec.patch**2 * config.dataset.inputs.channels
    if tau < 1:
        yield Reading(
            tau,
            "at least 1",
            "stop",
            f"train.learning_rate={rate:g} is too high for hidden size {spec.hidden}: one step changes the output by"
            " more than its target",
            advice=f"set train.learning_rate to {0.1 / spec.hidden:.1g} or lower",
        )
    if spec.hidden < values:
        yield Reading(
            spec.hidden,
            f"at least patch^2 x channels = {values}",
            "warn",
            f"{spec.name} cannot copy a patch of noise: its loss cannot fall below {1 - spec.hidden / values:.2f}",
            advice="choose a variant with a smaller patch or a larger hidden size",
        )
    if first_deadline(config, spec) > first:
        yield Reading(
            first_deadline(config, spec),
            f"at most {first}, the first sampled step",
            "warn",
            f"the learning rate {rate:g} is too low or the training too short: at step {first} the samples will be"
            " noise",
            advice="raise train.learning_rate, or sample later (evaluation.at_steps)",
        )
    if config.sampling.weights == "ema" and (share := initial_share(config, first)) > EMA_SHARE:
        yield Reading(
            share,
            f"at most {EMA_SHARE:g}",
            "warn",
            f"the average still holds {share:.0%} of the initial weights at step {first} (train.ema_decay="
            f"{config.train.ema_decay:g}): its samples will be noise although the training is healthy",
            advice="lower train.ema_decay, sample later (evaluation.at_steps), or set sampling.weights=raw",
        )
