"""Checks 3 and 4, `feed` and `labels`: whether the first batches are samples of the prepared dataset.

Shapes: M samples of all ranks and steps, C channels, K classes, F low cosine coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dit.health.bounds import Bounds, Float64
from dit.health.gate import Reading

STEPS = 8
"""Steps whose batches are read."""
LARGEST_Z = 5.0
"""Chance exceeds it once in 1.7 million normal numbers; a run makes fewer than 20."""
_FEWEST = 32
"""Samples, and images of the dataset, from which a mean is nearly normal and its error is known."""
_LOW_MODES = 4
_PERMUTATIONS = 64


@dataclass(frozen=True)
class FeedView:
    """Sums over the first batches of all ranks."""

    bounds: Bounds
    label_drop: float
    diffusion_steps: int
    expected: int
    """Samples that the global batches should have had."""
    epochs: int
    """Epochs that the steps touch."""
    occurrences: npt.NDArray[np.int64]
    """How often each sample of the dataset occurred."""
    mean_C: Float64
    power_C: Float64
    noise_power: float
    noise_values: int
    t_mean: float
    labels_M: npt.NDArray[np.int64]
    """Of all samples; the number of classes where the label was dropped."""
    low_MF: npt.NDArray[np.float32]
    """Lowest cosine coefficients of each latent."""


def feed(view: FeedView) -> Reading:
    """Compare the batches with the manifest and with their distributions."""
    bound = f"|z| < {LARGEST_Z:g}, each sample at most once an epoch"
    total, most = int(view.occurrences.sum()), int(view.occurrences.max())
    if total != view.expected or most > view.epochs:
        repeated = int((view.occurrences > view.epochs).sum())
        return Reading(
            float(repeated),
            bound,
            "stop",
            f"the ranks were fed {total} samples instead of {view.expected}, {repeated} of them more often than an"
            " epoch allows",
            "a lost rank, two ranks with the same slice, or shards that hold only a part of the data",
            "compare RANK and WORLD_SIZE of all processes, and the dataset's manifest",
        )
    scores = _scores(view)
    if not all(map(math.isfinite, [scores["mean"], scores["power"]])):
        return Reading(
            None, bound, "stop", "latents are not finite", "", "prepare the dataset again: a shard of it is damaged"
        )
    if min(len(view.labels_M), view.bounds.count) < _FEWEST:
        # The spread of a few latents does not tell how far another few may be from them.
        del scores["mean"], scores["power"]
    name = max(scores, key=lambda key: abs(scores[key]))
    if abs(scores[name]) < LARGEST_Z:
        return Reading(scores[name], bound)
    factor = _common_factor(view)
    if abs(scores.get("power", 0.0)) >= LARGEST_Z and factor is not None:
        return Reading(
            scores["power"],
            bound,
            "stop",
            f"the latents are {factor:.3g} times as large as those of the prepared dataset: the scale factor is"
            " forgotten or applied twice",
            advice="compare dataset.codec.scale_factor with the manifest's",
        )
    cause, advice = _CAUSES[name]
    return Reading(scores[name], bound, "stop", cause, "", advice)


_CAUSES = {
    "mean": (
        "the latents' mean is not that of the prepared dataset",
        "check that the training reads the dataset it was prepared for",
    ),
    "power": (
        "the latents' size is not that of the prepared dataset, and differs between channels",
        "check that the training reads the dataset it was prepared for",
    ),
    "labels": (
        "the labels are not distributed as in the dataset: batches are sorted or come from few classes",
        "check the order of samples and the label counts of the manifest",
    ),
    "dropped": (
        "the share of dropped labels is not train.label_drop: labels are lost, or never dropped for guidance",
        "check how labels reach the model",
    ),
    "timesteps": ("the timesteps are not uniform over the training chain", "check how timesteps are drawn"),
    "noise": ("the noise is not standard normal", "check how noise is drawn"),
}


def _common_factor(view: FeedView) -> float | None:
    """Return the factor on all channels that explains their power, within its error; None if there is none."""
    expected_C = np.maximum(view.bounds.power_C, 1e-12)
    factor_C = np.sqrt(view.power_C / expected_C)
    factor = float(factor_C.mean())
    error_C = view.bounds.power_std_C / (2 * expected_C * math.sqrt(len(view.labels_M)))
    return factor if np.all(np.abs(factor_C / factor - 1) < LARGEST_Z * error_C) else None


def _scores(view: FeedView) -> dict[str, float]:
    """Return each quantity's distance from its expectation in standard errors."""
    bounds, m = view.bounds, len(view.labels_M)
    size = bounds.moment_HWCC.shape[0] ** 2
    # The mean of a latent is its coefficient of the constant mode, divided by the root of the number of positions.
    mean_error = np.sqrt(np.diagonal(bounds.moment_HWCC[0, 0]) / size / m)
    kept = view.labels_M[view.labels_M < len(bounds.class_counts_K)]
    shares = bounds.class_counts_K / bounds.class_counts_K.sum()
    drop, t_steps = view.label_drop, view.diffusion_steps
    return {
        "mean": _largest((view.mean_C - bounds.mean_C) / np.maximum(mean_error, 1e-9)),
        "power": _largest((view.power_C - bounds.power_C) / np.maximum(bounds.power_std_C / math.sqrt(m), 1e-9)),
        "labels": _chi_squared(np.bincount(kept, minlength=len(shares)), shares),
        "dropped": ((1 - len(kept) / m) - drop) / max(math.sqrt(drop * (1 - drop) / m), 1 / m),
        "timesteps": (view.t_mean - (t_steps - 1) / 2) / math.sqrt((t_steps**2 - 1) / 12 / m),
        "noise": (view.noise_power - 1) / math.sqrt(2 / view.noise_values),
    }


def _largest(values: Float64) -> float:
    return float(values[np.abs(values).argmax()])


def _chi_squared(counts: npt.NDArray[np.int64], shares: Float64) -> float:
    """Return chi-squared minus its degrees of freedom, in standard deviations; only too uneven counts are positive."""
    filled = shares > 0
    if filled.sum() < 2 or not counts.sum():
        return 0.0
    if counts[~filled].any():
        return math.inf
    expected = counts.sum() * shares[filled]
    statistic = float((np.square(counts[filled] - expected) / expected).sum())
    freedom = int(filled.sum()) - 1
    # The cube root of a chi-squared is nearly normal, also for few degrees of freedom (Wilson & Hilferty 1931).
    score = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return max(0.0, float(score))


def low_modes(modes_NCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the lowest cosine coefficients [N, F] of each latent, where classes differ most."""
    return modes_NCHW[:, :, :_LOW_MODES, :_LOW_MODES].reshape(len(modes_NCHW), -1)


def labels(view: FeedView) -> Reading | None:
    """Compare the variance between the batches' classes with that under permuted labels."""
    labelled = view.labels_M < len(view.bounds.class_counts_K)
    low_MF, labels_M = view.low_MF[labelled], view.labels_M[labelled]
    if len(np.unique(labels_M)) < 2 or len(labels_M) < 4:
        return None
    low_MF = low_MF - low_MF.mean(axis=0)
    random = np.random.Generator(np.random.SFC64(len(labels_M)))
    chance = [_between(low_MF, random.permutation(labels_M)) for _ in range(_PERMUTATIONS)]
    score = (_between(low_MF, labels_M) - float(np.mean(chance))) / max(float(np.std(chance)), 1e-12)
    bound = f"z > {LARGEST_Z:g}"
    # The whole dataset's information per sample, for as many samples: below it, chance alone may fail the check.
    visible = view.bounds.class_information * len(labels_M) / view.bounds.count
    if score > LARGEST_Z:
        return Reading(score, bound)
    if visible < 2 * LARGEST_Z:
        # A healthy score of that expectation may be below the bound by chance.
        return None
    return Reading(
        score,
        bound,
        "stop" if visible > 4 * LARGEST_Z else "warn",
        "the labels of the batches do not belong to their images",
        "a dataset whose classes cannot be told apart by the coarse structure of an image",
        "look at the label counts and images of a shard, and prepare the dataset again if labels were shuffled",
    )


def _between(low_MF: npt.NDArray[np.float32], labels_M: npt.NDArray[np.int64]) -> float:
    """Return the share of variance between classes."""
    order = np.argsort(labels_M, kind="stable")
    _, starts, counts = np.unique(labels_M[order], return_index=True, return_counts=True)
    sums = np.add.reduceat(low_MF[order], starts, axis=0)
    return float((np.square(sums).sum(axis=1) / counts).sum() / np.square(low_MF).sum())
