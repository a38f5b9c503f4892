"""Checks 5 to 9, of a training's first steps and windows: `start`, `learning`, `pure-noise`, `ema`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dit.health.gate import Reading

FLOAT_ERROR = 2.0**-24
"""Relative rounding error of float32."""
_HIGHEST_LOSS = 1.1
_LEAST_CORRELATION = 0.6
_START_ERROR = 1e-6
_RATE_ERROR = 0.05
"""Far above the error of a first update: Adam's epsilon over the largest gradient, 1e-5 or less."""


@dataclass(frozen=True)
class StartView:
    """A new model's first step, or with `untrained` its fourth."""

    mse: float
    """Squared noise error of step 1, mean over the global batch."""
    noise_power: float
    """Mean square of the noise of step 1, drawn here from the seed for the whole global batch."""
    x0_power: float
    """Mean square of the latents of step 1."""
    world_size: int
    lost_positions: bool
    """Whether the table of positions differs from its formula."""
    untrained: Sequence[str] = ()
    """Parameters without a second moment in the optimizer after step 4; a fixed table of positions is not one."""
    leftover_gradient: float = 0.0
    """Largest gradient that is left after a step."""
    share_powers: Sequence[float] = ()
    """Mean square of the noise of each rank's share of step 1."""
    fed: int | None = None
    """Samples of step 1 over all ranks, of `global_batch`; None if nothing counted them."""
    global_batch: int = 0
    first_update: float = 0.0
    """Largest weight of the head after step 1, over the learning rate; 0 if it is not known."""


def start(view: StartView) -> Reading:
    """Check that the first loss is the noise's power, the first update the learning rate, and every tensor is trained.

    A new DiT's output is exactly 0 (adaLN-Zero, Peebles & Xie 2023, section 3.2). Adam's first update of each weight is
    its learning rate (Kingma & Ba 2015, section 2.1), and the head starts at 0.
    """
    bound = f"at most {_START_ERROR:g} from the noise's power, every tensor trained"
    return next(_wrong_steps(view), Reading(abs(view.mse - view.noise_power), bound))


def _wrong_steps(view: StartView) -> Iterator[Reading]:
    difference = abs(view.mse - view.noise_power)
    bound = f"at most {_START_ERROR:g} from the noise's power"
    if view.lost_positions:
        yield Reading(
            difference,
            "a table of positions that equals its formula",
            "stop",
            "the table of positions differs from its formula: patches have lost their places",
            advice="check what changes `pos_embed` after the model is built",
        )
    if view.leftover_gradient > 0:
        yield Reading(
            view.leftover_gradient,
            "0: no gradient left after a step",
            "stop",
            "gradients are not zeroed between steps, so each step repeats all before it",
            advice="call optimizer.zero_grad after each step",
        )
    if view.untrained:
        head = any(name.startswith("final_layer.linear") for name in view.untrained)
        yield Reading(
            float(len(view.untrained)),
            "0 tensors without a gradient after step 4",
            "stop",
            ("the head (final_layer.linear) is not trained, so no tensor before it is" if head else "tensors are not")
            + (f" trained: {', '.join(view.untrained[:3])}" if not head else ""),
            "a loss that is cut off from the model's output",
            "check requires_grad and the parameters given to the optimizer",
        )
    if view.fed not in (None, view.global_batch):
        yield Reading(
            float(view.fed or 0),
            f"{view.global_batch} samples in step 1",
            "stop",
            f"the ranks were fed {view.fed} samples instead of {view.global_batch}: the data of a rank are missing",
            "a batch that is divided among more ranks than there are",
            "compare RANK and WORLD_SIZE of all processes",
        )
    if difference > _START_ERROR:
        yield Reading(difference, bound, "stop", *_wrong_start(view))
    if view.first_update and not math.isclose(view.first_update, 1, rel_tol=_RATE_ERROR):
        yield Reading(
            view.first_update,
            f"1 within {_RATE_ERROR:.0%}: the first update over train.learning_rate",
            "stop",
            f"the optimizer's learning rate is {view.first_update:.3g} times train.learning_rate",
            "a warm-up, or an optimizer that is not Adam",
            "check the learning rate that the optimizer is given",
        )


def _wrong_start(view: StartView) -> tuple[str, str, str]:
    if math.isclose(view.mse, view.x0_power, rel_tol=1e-3):
        return (
            "the loss compares the output with the image (x0), not with the noise",
            "",
            "train the prediction of the noise (DDPM eq. 14), which the sampler expects",
        )
    ranks = view.world_size
    alone = [rank for rank, power in enumerate(view.share_powers) if math.isclose(view.mse, power, rel_tol=1e-5)]
    if ranks > 1 and alone:
        return (
            f"the first loss is that of rank {alone[0]}'s samples alone",
            "every rank with the same share of the batch",
            "sum the loss over ranks, and compare RANK and WORLD_SIZE of all processes",
        )
    if ranks > 1 and math.isclose(view.mse * ranks, view.noise_power, rel_tol=0.1):
        return (
            f"the loss is {ranks} times too small: that of one rank, or divided by the number of ranks twice",
            "ranks that get no data",
            "sum the loss over ranks and divide by the global batch once",
        )
    return (
        "the first loss is not the power of the seed's noise",
        "an output that does not start at 0, a loss of one rank alone, or noise of another seed",
        "check the initialisation of the head, the loss, and how noise is drawn",
    )


@dataclass(frozen=True)
class WindowView:
    """A window of steps that ended at `step`."""

    step: int
    worst_mse: float
    """Largest squared noise error of a step in the window, the first step of a training left out."""
    values: int
    """Values in a global batch."""
    ratio_a: float | None
    """Squared noise error of the last windows over the dataset's bound a at the same timesteps."""
    deadline: int
    """Step from which `ratio_a` must be below 1."""
    stop_from: int
    """Step from which the training stops otherwise."""


def learning(view: WindowView) -> Reading | None:
    """Check that the loss does not grow, and that from the deadline on it is below bound a."""
    # Five standard errors of the mean square of a batch's noise.
    highest = _HIGHEST_LOSS + 5 * math.sqrt(2 / view.values)
    if view.worst_mse > highest:
        return Reading(
            view.worst_mse,
            f"at most {highest:.3f}",
            "stop",
            "the training diverges: the model predicts worse than an untrained one",
            "a learning rate that is too high, or gradients that are not zeroed",
            "lower train.learning_rate under another study name, and look at the gradient norm",
        )
    if view.ratio_a is None:
        return None
    bound = f"below 1 from step {view.deadline}"
    if view.step < view.deadline or view.ratio_a < 1:
        return Reading(view.ratio_a, bound)
    return Reading(
        view.ratio_a,
        bound,
        "stop" if view.step >= view.stop_from else "warn",
        "the model has learned no spatial structure: it does not beat a denoiser that knows only variances",
        "noise that is not the target's, another target, a frozen head, latents without scale factor, another noise"
        " schedule, or a learning rate that is far too low",
        "look at the readings of start, feed and pure-noise, and compare train.learning_rate with the paper's",
    )


@dataclass(frozen=True)
class NoiseView:
    """The model's prediction on noise alone at the last step of the chain."""

    step: int
    correlation: float
    """Between predicted and given noise."""
    std: float
    """Of the predicted noise."""
    rank_share: float
    """hidden / (patch^2 x channels), at most 1: the share of a patch's values that the model can copy."""
    tau: float


def pure_noise(view: NoiseView) -> Reading:
    """Check that a model given noise predicts noise: at t = 999 nothing else is there."""
    least = _LEAST_CORRELATION * math.sqrt(view.rank_share)
    if view.correlation < least:
        return Reading(
            view.correlation,
            f"at least {least:.2f}",
            "stop",
            "the model does not predict the noise that it is given",
            "noise in the loss that is not the noise in the input, another target (x0), a head that is not trained",
            "check that the loss compares the output with the noise of the same sample",
        )
    if view.step >= 20 + 3 * view.tau and not 0.5 <= view.std <= 1.5:
        return Reading(
            view.std,
            "0.5 to 1.5",
            "stop",
            "the predicted noise has the wrong size",
            "latents or noise of the wrong scale, or a learning rate that is too high",
            "check the scale factor and train.learning_rate",
        )
    return Reading(view.correlation, f"at least {least:.2f}")


@dataclass(frozen=True)
class EmaView:
    """Some elements of the average beside a float64 average of the same weights."""

    step: int
    updates: int
    """Steps since the float64 average began."""
    decay: float
    average: Sequence[float]
    expected: Sequence[float]
    initial: Sequence[float]
    """Of the average when the float64 average began."""
    largest: Sequence[float]
    """Largest magnitude of each weight since then."""


def ema(view: EmaView) -> Reading:
    """Check that the average follows the weights, to the rounding error of that many float32 updates."""
    count = min(view.updates, 1 / (1 - view.decay)) if view.decay < 1 else view.updates
    excess = [
        abs(average - expected) / max(4 * FLOAT_ERROR * largest * count, 1e-30)
        for average, expected, largest in zip(view.average, view.expected, view.largest, strict=True)
    ]
    worst = max(excess)
    if worst <= 1:
        return Reading(worst, "at most 1 rounding error")
    pairs = zip(view.average, view.initial, strict=True)
    frozen = all(average == initial for average, initial in pairs)
    cause = "the EMA does not follow the weights"
    if frozen:
        cause = f"the EMA has not changed in {view.updates} steps: samples from it stay noise"
    return Reading(
        worst,
        "at most 1 rounding error",
        "stop",
        cause,
        "" if frozen else "an EMA that is kept in bf16 or fp16, updated too seldom, or with another decay",
        "update it once per optimizer step, in float32, from the trained parameters, with train.ema_decay",
    )
