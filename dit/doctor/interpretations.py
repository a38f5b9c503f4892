"""Interpretations of a model's weights: the ways in which a training may have differed from the paper's.

A model that was trained under one of them predicts noise well when it is used in the same way, and only then.
Shapes: N samples, C channels, H and W sides of the latent, P patch side, T diffusion steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dit.diffusion.schedule import Float64, linear_schedule

Chain = Literal["linear", "cosine", "scaled-linear", "flow"]
Target = Literal["noise", "x0", "v", "data - noise", "noise - data"]
VAE_SCALE = 0.18215
"""Scale factor of Stable Diffusion's autoencoders (Rombach et al. 2022)."""
STEPS = 1000


@dataclass(frozen=True)
class Interpretation:
    """One way to use a model; the fields' defaults are the paper's."""

    name: str
    cause: str = ""
    """What it says about the training if it fits best."""
    chain: Chain = "linear"
    target: Target = "noise"
    time_factor: float = 1.0
    """Factor of the timestep, which counts from 0 to 999."""
    reversed_time: bool = False
    scale: float = 1.0
    """Factor of the latents."""
    patches_in: bool = False
    """Whether input patches are in the order row, column, channel instead of channel, row, column."""
    patches_out: bool = False
    """Whether output patches are in the order channel, row, column instead of row, column, channel."""
    label_shift: int = 0
    positions: Literal["own", "formula", "swapped"] = "own"
    """The table of positions: the checkpoint's, the formula's, or the formula's with rows and columns swapped."""


AS_IT_IS = Interpretation("as it is")
_TRAINED = "the model was trained with"
INTERPRETATIONS: tuple[Interpretation, ...] = (
    Interpretation("t / 1000", f"{_TRAINED} timesteps of 0 to 1 (t / 1000)", time_factor=1 / STEPS),
    Interpretation("t reversed", f"{_TRAINED} timesteps that count down", reversed_time=True),
    Interpretation("output patches (c, p, q)", f"{_TRAINED} output patches in the order (c, p, q)", patches_out=True),
    Interpretation("input patches (p, q, c)", f"{_TRAINED} input patches in the order (p, q, c)", patches_in=True),
    Interpretation(
        "latents / 0.18215", f"{_TRAINED} unscaled latents: the scale factor was forgotten", scale=1 / VAE_SCALE
    ),
    Interpretation("latents x 0.18215", f"{_TRAINED} latents that were scaled twice", scale=VAE_SCALE),
    Interpretation("cosine schedule", f"{_TRAINED} the cosine noise schedule", chain="cosine"),
    Interpretation(
        "scaled-linear schedule", f"{_TRAINED} Stable Diffusion's noise schedule (betas 0.00085 to 0.012)",
        chain="scaled-linear",
    ),
    Interpretation("x0 as output", "the model predicts the image (x0), not the noise", target="x0"),
    Interpretation("v as output", "the model predicts v, not the noise", target="v"),
    Interpretation(
        "velocity, t of 0 to 1", "the model is a flow-matching model (SiT): it predicts a velocity, not the noise",
        chain="flow", target="data - noise", time_factor=1 / STEPS, reversed_time=True,
    ),
    Interpretation(
        "velocity, t of 0 to 1000", "the model is a rectified-flow model: it predicts a velocity, not the noise",
        chain="flow", target="noise - data",
    ),
    Interpretation("labels + 1", f"{_TRAINED} labels one above the dataset's", label_shift=1),
    Interpretation("labels - 1", f"{_TRAINED} labels one below the dataset's", label_shift=-1),
    Interpretation("positions of the formula", f"{_TRAINED} the formula's positions", positions="formula"),
    Interpretation("rows and columns swapped", f"{_TRAINED} rows and columns swapped", positions="swapped"),
)  # fmt: skip
"""All others than `AS_IT_IS`."""


def signal_and_noise(chain: Chain) -> tuple[Float64, Float64]:
    """Return the factors of latent and noise at every step, float64 [T] each."""
    if chain == "flow":
        # Liu et al. 2022 (rectified flow): x = (1 - s) x_0 + s noise; without the ends, which lack noise or image.
        level = (np.arange(STEPS) + 0.5) / STEPS
        return 1 - level, level
    bar = _alphas_cumprod(chain)
    return np.sqrt(bar), np.sqrt(1 - bar)


def _alphas_cumprod(chain: Chain) -> Float64:
    if chain == "cosine":
        # Nichol & Dhariwal 2021, eq. 17, with betas of at most 0.999.
        bar = np.cos((np.arange(STEPS + 1) / STEPS + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.asarray(np.cumprod(1 - np.clip(1 - bar[1:] / bar[:-1], 0, 0.999)))
    if chain == "scaled-linear":
        # Rombach et al. 2022: the square roots of the betas are linear.
        return np.asarray(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, STEPS) ** 2))
    return linear_schedule().alphas_cumprod


def timesteps(one: Interpretation, t_N: Tensor) -> Tensor:
    """Return what the model is given for steps t_N, float32 [N]."""
    counted = STEPS - 1 - t_N if one.reversed_time else t_N
    return counted.float() * one.time_factor


def reorder(x_NCHW: Tensor, patch: int) -> Tensor:
    """Return the image whose patches, read as (c, p, q), are these patches read as (p, q, c)."""
    n, c, height, width = x_NCHW.shape
    grid = x_NCHW.reshape(n, c, height // patch, patch, width // patch, patch).permute(0, 2, 4, 3, 5, 1)
    again = grid.reshape(n, height // patch, width // patch, c, patch, patch)
    return again.permute(0, 3, 1, 4, 2, 5).reshape(n, c, height, width)


def noise_of(target: Target, output: Tensor, x: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Return the noise that an output means, for x = signal x_0 + noise n."""
    if target == "x0":
        return (x - signal * output) / noise
    if target == "v":
        # Salimans & Ho 2022, appendix D: v = signal n - noise x_0, with signal^2 + noise^2 = 1.
        return signal * output + noise * x
    if target == "data - noise":
        # x = signal (v + n) + noise n, with signal + noise = 1.
        return x - signal * output
    return x + signal * output if target == "noise - data" else output


def noise_per_output(target: Target, signal_T: Float64, noise_T: Float64) -> Float64:
    """Return how much the noise of `noise_of` changes with the output at every step, float64 [T].

    It is 1 for noise. For x0 it exceeds 100 at the least noisy steps, where the noise cannot be read from an image.
    """
    if target == "noise":
        return np.ones_like(signal_T)
    return signal_T / noise_T if target == "x0" else signal_T


def labels(one: Interpretation, y_N: Tensor, classes: int) -> Tensor:
    """Return the labels that the model is given."""
    return torch.remainder(y_N + one.label_shift, classes)
