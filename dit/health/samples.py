"""Checks 13 and 14, of sampled checkpoints: `samples` and `label-gain`.

Shapes: N samples, C channels, H and W sides of the latent, T diffusion steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dit.diffusion.losses import diffuse
from dit.diffusion.sampler import Denoiser
from dit.diffusion.schedule import Schedule
from dit.health.bounds import Bounds, neighbour_correlation
from dit.health.gate import Reading
from dit.study.config import StudyConfig

SAMPLES = 16
_LEARNED = 1.0
"""Ratio to bound b below which samples must look like the dataset: those of the Wiener denoiser itself do."""
_NOISE = 20.0
"""Standard deviation over the dataset's from which samples are noise, however little a model has learned."""
_WRONG_LABELS = 4
_LEAST_Z = 2.0
_RATIO_ERROR = 512**-0.5
"""Standard error of a ratio over 512 samples whose errors have a relative standard deviation of 1."""
_FEW_LABELS, _MANY_LABELS = 64, 256


@dataclass(frozen=True)
class SamplesView:
    """The first latents of a checkpoint's sample set."""

    bounds: Bounds
    latents_NCHW: npt.NDArray[np.float32]
    ratio_b: float | None
    """The training's last squared noise error over bound b; None if the checkpoint does not have it."""
    initial_share: float
    """Share of the initial weights in the sampled weights: decay^step for the EMA, 0 for raw weights."""
    class_ratio: float = 0.0
    """Bound cls over bound b: the ratio to bound b from which a model can be expected to use its labels."""
    label_gains_N: npt.NDArray[np.float64] | None = None
    """For each probe sample, the loss with wrong labels minus that with its own."""


def samples(view: SamplesView) -> Reading:
    """Compare size, mean, largest value and smoothness of the samples with the dataset's."""
    mean_C, std_C = view.bounds.mean_C, np.maximum(view.bounds.std_C, 1e-9)
    x = view.latents_NCHW.astype(np.float64)
    over = (0, 2, 3)
    ratios = x.std(axis=over) / std_C
    ratio = float(max(ratios, key=lambda value: abs(math.log(max(value, 1e-9)))))
    shift = float(np.abs((x.mean(axis=over) - mean_C) / std_C).max())
    largest = float(np.abs((x - mean_C[:, None, None]) / std_C[:, None, None]).max())
    products, squares = neighbour_correlation(x, mean_C)
    smooth = products / max(squares, 1e-30)
    bound = "std within 1.5 times the dataset's, |mean| < 0.5 std, |z| < 8, neighbours > half the dataset's"
    healthy = 1 / 1.5 < ratio < 1.5 and shift < 0.5 and largest < 8
    # White data have no neighbour correlation to compare.
    if view.bounds.neighbours > 0.1:
        healthy = healthy and smooth > view.bounds.neighbours / 2
    if healthy:
        return Reading(ratio, bound)
    lagging = view.initial_share > 0.02
    learned = view.ratio_b is not None and view.ratio_b < _LEARNED
    if not learned and not lagging and ratio < _NOISE:
        # Its errors at the noisiest steps are still many times those of the Wiener denoiser, and widen the samples.
        return Reading(ratio, f"{bound}, once the loss is below bound b")
    if lagging:
        cause, alike = f"the average still holds {view.initial_share:.0%} of the initial weights", ""
    elif not learned:
        cause, alike = (
            "the model has not learned enough yet for its samples to look like the dataset",
            "a broken sampler",
        )
    elif ratio > _NOISE:
        cause = "the samples are noise although the training is healthy: the sampled model predicts no noise"
        alike = "an EMA that was never updated, weights that were not loaded, or timesteps of the wrong scale"
    else:
        cause = "the samples do not look like the dataset although the training is healthy"
        alike = "a skipped timestep map, a low-precision EMA, latents of the wrong scale, lost positions"
    return Reading(
        ratio,
        f"{bound} (mean {shift:.2f}, |z| {largest:.1f}, neighbours {smooth:.2f} of {view.bounds.neighbours:.2f})",
        "stop" if learned and not lagging else "warn",
        cause,
        alike,
        "look at the checks identity and sampler, and draw the same checkpoint with sampling.weights=raw",
    )


def label_gain(view: SamplesView) -> Reading | None:
    """Check that the right label lowers the loss, once the model beats a linear denoiser that knows the classes."""
    gains, ratio = view.label_gains_N, view.ratio_b
    if gains is None or len(gains) < 2 or ratio is None or ratio > view.class_ratio:
        return None
    if view.class_ratio > 1 - _RATIO_ERROR:
        # Labels explain less of these latents than the ratio's own error: below it, a model may know nothing of them.
        return None
    score = float(gains.mean() / max(gains.std(ddof=1) / math.sqrt(len(gains)), 1e-12))
    if score > _LEAST_Z:
        return Reading(score, f"z > {_LEAST_Z:g}")
    return Reading(
        score,
        f"z > {_LEAST_Z:g}",
        "warn",
        "the model does not use its labels",
        "a model that has not yet learned its classes, or shuffled labels in the dataset",
        "look at the check labels; train longer if that one is healthy",
    )


def label_samples(config: StudyConfig) -> int:
    """Return the number of probe samples for the check of labels: more if they cost less than 0.3 % of it."""
    forward_passes = len(config.evaluation.at_steps) * (1 + _WRONG_LABELS) * _MANY_LABELS
    # A training step costs three forward passes of its batch.
    return _MANY_LABELS if forward_passes < 0.003 * 3 * config.train.steps * config.train.global_batch else _FEW_LABELS


@torch.no_grad()
def measure_label_gains(
    denoise: Denoiser, bounds: Bounds, schedule: Schedule, count: int, device: torch.device
) -> npt.NDArray[np.float64] | None:
    """Return for `count` probe samples the mean loss with wrong labels minus that with the right one.

    Timesteps are drawn where labels matter: with the density of bound bm minus bound cls. None if they never do.
    """
    classes, abar = len(bounds.class_counts_K), schedule.alphas_cumprod
    weight_T = (bounds.errors_T("bm", abar) - bounds.errors_T("cls", abar)).clip(0)
    n = min(count, len(bounds.probe_labels_N))
    if classes < 2 or not weight_T.any():
        return None
    random = np.random.Generator(np.random.SFC64(count))
    x0 = torch.from_numpy(bounds.probe_NCHW[:n].astype(np.float32))
    t = torch.from_numpy(random.choice(len(weight_T), size=n, p=weight_T / weight_T.sum()))
    noise = torch.from_numpy(random.standard_normal(tuple(x0.shape), dtype=np.float32))
    x = diffuse(schedule, x0, t, noise)
    right = torch.from_numpy(bounds.probe_labels_N[:n])
    offsets = torch.from_numpy(random.integers(1, classes, (_WRONG_LABELS, n)))
    losses = []
    for labels in (right, *((right + offset) % classes for offset in offsets)):
        parts = []
        for rows in torch.split(torch.arange(n), _FEW_LABELS):
            output = denoise(x[rows].to(device), t[rows].to(device), labels[rows].to(device))
            epsilon = output.float().chunk(2, dim=1)[0].cpu()
            parts.append((noise[rows] - epsilon).square().mean(dim=(1, 2, 3)))
        losses.append(torch.cat(parts).double().numpy())
    return np.asarray(np.mean(losses[1:], axis=0) - losses[0])
