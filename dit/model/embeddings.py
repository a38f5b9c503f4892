"""The transformer's inputs: patches, their positions, the timestep and the label (Peebles & Xie 2023, section 3.2).

Shapes: N batch, C channels, H and W sides of the latent, P patch side, T tokens (row by row), D hidden size,
F timestep features.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit.study.variants import FREQUENCY_EMBEDDING_SIZE

_LONGEST_PERIOD = 10_000.0


class PatchEmbedder(nn.Module):
    """A linear map of every patch; its weights have the shape of the equivalent convolution."""

    def __init__(self, channels: int, patch: int, hidden: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, hidden, kernel_size=patch, stride=patch)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, T, D]."""
        # The convolution's stride is the patch side, so it equals one matrix product, which a CPU computes faster.
        return F.linear(patchify(x_NCHW, self.patch), self.proj.weight.flatten(1), self.proj.bias)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of the timestep, then two linear layers with SiLU between."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_EMBEDDING_SIZE, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, t_N: Tensor) -> Tensor:
        """Steps of the training chain [N], fractions allowed -> [N, D]."""
        embedded_ND: Tensor = self.mlp(timestep_features(t_N, FREQUENCY_EMBEDDING_SIZE))
        return embedded_ND


class LabelEmbedder(nn.Module):
    """One row per class and a last row for "no label", which classifier-free guidance needs (Ho & Salimans 2022)."""

    def __init__(self, classes: int, hidden: int) -> None:
        super().__init__()
        # nn.Embedding(...) would draw weights; on the meta device torch then imports its compiler, which takes seconds.
        from_weights: Any = nn.Embedding.from_pretrained  # untyped in torch
        self.embedding_table: nn.Embedding = from_weights(torch.empty(classes + 1, hidden), freeze=False)

    def forward(self, y_N: Tensor) -> Tensor:
        """int64 labels [N] in [0, classes], where `classes` means no label -> [N, D]."""
        embedded_ND: Tensor = self.embedding_table(y_N)
        return embedded_ND


def timestep_features(t_N: Tensor, size: int) -> Tensor:
    """Return [N, size]: cosines, then sines, of t at `size / 2` frequencies from 1 down to 1 / 10,000.

    The frequencies are geometric, as in Vaswani et al. 2017, section 3.5.
    """
    half = size // 2
    exponents_F = -math.log(_LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=t_N.device) / half
    # The exponents stay float32, as published weights were trained with them: at step 999 their rounding changes the
    # angle's fifth digit. The exponential is taken in float64, because devices differ in the last bit of a float32 one.
    angles_NF = t_N.float()[:, None] * exponents_F.double().exp().float()
    return torch.cat([angles_NF.cos(), angles_NF.sin()], dim=-1)


def position_table(hidden: int, side: int) -> Tensor:
    """Return the fixed 2-D sine-cosine positions of a `side` x `side` grid, float32 [T, D].

    The first half of D encodes the column, the second the row. In each half sines precede cosines.
    """
    # One axis takes D / 2 values: sine and cosine at D / 4 frequencies. float64, rounded once at the end.
    frequencies = _LONGEST_PERIOD ** -np.linspace(0, 1, hidden // 4, endpoint=False, dtype=np.float64)
    angles = np.arange(side, dtype=np.float64)[:, None] * frequencies
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    # Token side * row + column: columns change fastest.
    table = np.concatenate([np.tile(axis, (side, 1)), np.repeat(axis, side, axis=0)], axis=1)
    return torch.from_numpy(table).float()


def patchify(x_NCHW: Tensor, patch: int) -> Tensor:
    """[N, C, H, W] -> [N, T, C * P * P]. Order inside a patch, as in a convolution's weights: channel, row, column."""
    n, channels, height, width = x_NCHW.shape
    grid = x_NCHW.reshape(n, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * patch * patch)


def unpatchify(x_NTO: Tensor, patch: int) -> Tensor:
    """[N, T, P * P * C] -> [N, C, H, W] of a square grid.

    The order inside a patch is row, column, channel: that of published weights, and not the order of `patchify`.
    """
    n, tokens, values = x_NTO.shape
    side, channels = math.isqrt(tokens), values // patch**2
    grid = x_NTO.reshape(n, side, side, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(n, channels, side * patch, side * patch)
