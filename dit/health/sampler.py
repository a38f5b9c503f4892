"""Check 12, `sampler`: the dataset's own Wiener denoiser goes through the study's sampler, without a network.

For a Gaussian with independent cosine coefficients of variance l, the best denoiser is linear, so mean and variance of
every coefficient follow from a recursion over the chain, which is written here independently of the sampler's code.
Shapes: N samples, C channels, H and W sides of the latent, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dit.diffusion.schedule import Schedule
from dit.health.bounds import Bounds, Float32, Float64, cosine_matrix, to_modes
from dit.health.gate import Reading
from dit.study.config import SamplingConfig

SAMPLES = 16
LARGEST_Z = 6.0
_EXPLAINED = 0.8
_GUIDANCE_ERROR, _UNIFORM = 0.005, 1e-4
"""Healthy samplers differ from the recursion by 1e-6, the rounding of float32."""
_GUIDED_FIRST = 3
# Half-way between the two ends of the learned variance (Nichol & Dhariwal 2021, eq. 15, with v = 0.5 there).
_VARIANCE_POSITION = 0.0


class WienerDenoiser:
    """The best linear denoiser of the dataset, with the classes' means known: (x, t, y) -> [N, 2C, H, W]."""

    def __init__(self, bounds: Bounds, schedule: Schedule, device: torch.device) -> None:
        self._variance_CHW = torch.from_numpy(coefficient_variances(bounds)).float().to(device)
        self._mean_CHW = torch.from_numpy(mean_modes(bounds)).float().to(device)
        offsets = np.concatenate([class_offsets(bounds), np.zeros((1, *bounds.mean_modes_CHW.shape), np.float32)])
        self._offsets_KCHW = torch.from_numpy(offsets).float().to(device)
        self._abar_T = torch.from_numpy(schedule.alphas_cumprod).float().to(device)
        self._cosine = torch.from_numpy(cosine_matrix(bounds.moment_HWCC.shape[0])).to(device)

    def __call__(self, x_NCHW: Tensor, t_N: Tensor, y_N: Tensor) -> Tensor:
        """Return the expected noise given x_t: sqrt(1 - abar) (x - sqrt(abar) m) / (abar l + 1 - abar) in modes."""
        abar = self._abar_T[t_N].view(-1, 1, 1, 1)
        modes = self._cosine @ x_NCHW @ self._cosine.T - abar.sqrt() * (self._mean_CHW + self._offsets_KCHW[y_N])
        epsilon = (1 - abar).sqrt() * modes / (abar * self._variance_CHW + 1 - abar)
        noise = self._cosine.T @ epsilon @ self._cosine
        return torch.cat([noise, torch.full_like(noise, _VARIANCE_POSITION)], dim=1)


def coefficient_variances(bounds: Bounds) -> Float64:
    """Return the variance of each cosine coefficient about the mean image, [C, H, W]."""
    return np.asarray(np.einsum("hwcc->chw", bounds.covariance_HWCC("bm")).clip(min=0))


def mean_modes(bounds: Bounds) -> Float64:
    """Return the cosine coefficients of the mean latent, [C, H, W]."""
    channels = np.broadcast_to(bounds.mean_C[:, None, None], bounds.mean_modes_CHW.shape)
    return np.asarray(to_modes(channels[None])[0] + bounds.mean_modes_CHW, dtype=np.float64)


def class_offsets(bounds: Bounds) -> Float32:
    """Return how each class's mean differs from the mean latent, [K, C, H, W]; 0 for a class without samples."""
    filled = (bounds.class_counts_K > 0)[:, None, None, None]
    return np.asarray((bounds.class_modes_KCHW - bounds.mean_modes_CHW) * filled, dtype=np.float32)


@dataclass(frozen=True)
class SamplerView:
    """Latents that the study's sampler drew with the Wiener denoiser, twice with the same noise."""

    bounds: Bounds
    sampling: SamplingConfig
    schedule: Schedule
    labels_N: np.ndarray[tuple[int], np.dtype[np.int64]]
    labelled_NCHW: Float32
    """With these labels."""
    unlabelled_NCHW: Float32
    """With the null label."""


def expected_moments(variance: Float64, sampling: SamplingConfig, alphas_cumprod_T: Float64) -> tuple[Float64, Float64]:
    """Return each coefficient's variance in the samples, and the share of its mean that they reach."""
    abar = alphas_cumprod_T[_kept_steps(sampling, len(alphas_cumprod_T))]
    previous = np.append(1.0, abar[:-1])
    spread, memory = np.ones_like(variance), np.ones_like(variance)
    for k in range(len(abar) - 1, -1, -1):
        now, before = abar[k], previous[k]
        # Noise and x_0 that the denoiser infers from a deviation of 1 of x_t from its mean.
        epsilon = np.sqrt(1 - now) / (now * variance + 1 - now)
        x0 = (1 - np.sqrt(1 - now) * epsilon) / np.sqrt(now)
        if sampling.sampler == "ddim":
            # Song et al. 2021, eq. 12 and 16.
            noise = sampling.eta**2 * (1 - before) / (1 - now) * (1 - now / before)
            gain = np.sqrt(before) * x0 + np.sqrt(max(1 - before - noise, 0.0)) * epsilon
        else:
            # DDPM eq. 7, with the geometric mean of its two variances.
            beta = 1 - now / before
            gain = (np.sqrt(before) * beta * x0 + (1 - before) * np.sqrt(1 - beta)) / (1 - now)
            noise = beta * np.sqrt((1 - before) / (1 - now)) if k else 0.0
        spread, memory = np.square(gain) * spread + noise, gain * memory
    return spread, 1 - np.sqrt(abar[-1]) * memory


def _kept_steps(sampling: SamplingConfig, length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if sampling.sampler == "ddim":
        return np.arange(0, length, -(-length // sampling.steps))
    return (
        np.rint(np.linspace(0, length - 1, sampling.steps)).astype(np.int64)
        if sampling.steps > 1
        else np.zeros(1, np.int64)
    )


def sampler(view: SamplerView) -> Reading:
    """Compare variance, mean and guidance of the samples with the recursion's."""
    spread, reached = expected_moments(coefficient_variances(view.bounds), view.sampling, view.schedule.alphas_cumprod)
    visible = spread > 1e-8 * spread.max()
    residual = to_modes(view.unlabelled_NCHW) - mean_modes(view.bounds) * reached
    scaled = residual[:, visible] / np.sqrt(spread[visible])
    count, size = scaled.shape
    values = (count - 1) * size
    ratio = float(scaled.var(axis=0, ddof=1).mean())
    mean_z = (float(np.square(scaled.mean(axis=0)).sum()) * count - size) / math.sqrt(2 * size)
    margin = LARGEST_Z * math.sqrt(0.5 / values)
    value, bound = math.sqrt(ratio), f"1 within {margin:.1%}, of the expected std"
    if not abs(ratio - 1) < LARGEST_Z * math.sqrt(2 / values):
        return _wrong_sampler(value, bound)
    if not mean_z < LARGEST_Z:
        label = _label_in(residual.mean(axis=0), view.bounds, _guided(view))
        if label is None or view.sampling.cfg_scale == 1:
            return _wrong_sampler(mean_z, f"below {LARGEST_Z:g}, z of the samples' mean")
        return Reading(
            mean_z,
            f"below {LARGEST_Z:g}, z of the samples' mean",
            "stop",
            f"samples without a label are moved by class {label}: it is taken for the null label",
            "",
            "the null label is the number of classes",
        )
    moved = _moved_by_label(view, reached)
    wrong = next((part for part in moved if abs(part.coefficient - part.expected) > _GUIDANCE_ERROR * part.size), None)
    if wrong is None:
        return Reading(value, bound)
    where = f"{wrong.expected:g}, the samples' move towards their class's mean"
    if wrong.unexplained > _UNIFORM:
        return _wrong_sampler(wrong.coefficient, where)
    return Reading(
        wrong.coefficient,
        where,
        "stop",
        "guidance does not move samples by sampling.cfg_scale times their class's difference",
        "a wrong sign, a label that does not reach the model, or swapped halves of the batch",
        "check how the conditional and the unconditional output are combined",
    )


def _wrong_sampler(value: float, bound: str) -> Reading:
    return Reading(
        value,
        bound,
        "stop",
        "the sampler does not turn a perfect denoiser's predictions into the dataset's distribution",
        "timesteps that are not the training chain's, another noise schedule, clipped x0, x0 taken for noise",
        "check the sampler's betas, its timestep map, and what it takes the model's output for",
    )


def _guided(view: SamplerView) -> int:
    """Return how many of the channels are guided: the first ones."""
    channels: int = view.unlabelled_NCHW.shape[1]
    return channels if view.sampling.guided_channels == "all" else min(_GUIDED_FIRST, channels)


def _label_in(shift_CHW: Float32, bounds: Bounds, guided: int) -> int | None:
    """Return the class whose offset explains a shift of the mean, up to its size; None if none does.

    Only guided channels are compared: the null label does not reach the others.
    """
    offsets = class_offsets(bounds)[:, :guided].reshape(len(bounds.class_counts_K), -1).astype(np.float64)
    shift = shift_CHW[:guided].ravel().astype(np.float64)
    lengths = np.linalg.norm(offsets, axis=1) * np.linalg.norm(shift)
    cosines = np.abs(offsets @ shift) / np.maximum(lengths, 1e-12)
    return int(cosines.argmax()) if cosines.max() > _EXPLAINED else None


@dataclass(frozen=True)
class _Move:
    """How far labels move samples, in units of their class's offset, in some channels."""

    expected: float
    coefficient: float
    unexplained: float
    """Share of the move that no multiple of the offset explains: another chain moves each coefficient differently."""

    @property
    def size(self) -> float:
        return max(1.0, abs(self.expected))


def _moved_by_label(view: SamplerView, reached: Float64) -> list[_Move]:
    """Return the move of guided and of unguided channels; none where classes do not differ."""
    offset = class_offsets(view.bounds)[view.labels_N] * reached
    # The noise is the same, so it cancels.
    moved = to_modes(view.labelled_NCHW).astype(np.float64) - to_modes(view.unlabelled_NCHW)
    channels = offset.shape[1]
    first = _guided(view)
    moves = []
    for part, expected in ((slice(0, first), view.sampling.cfg_scale), (slice(first, channels), 1.0)):
        size = float(np.square(offset[:, part]).sum())
        if size > 0:
            coefficient = float((moved[:, part] * offset[:, part]).sum()) / size
            left = float(np.square(moved[:, part] - coefficient * offset[:, part]).sum())
            moves.append(_Move(expected, coefficient, left / max(float(np.square(moved[:, part]).sum()), 1e-30)))
    return moves
