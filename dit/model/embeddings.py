"""What enters the transformer: patches, their positions, the timestep and the label.

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
    """One linear map of every patch, stored as the convolution it equals."""

    def __init__(self, channels: int, patch: int, hidden: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, hidden, kernel_size=patch, stride=patch)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, T, D]."""
        # Patches do not overlap, so a plain matrix product does it, and several times faster on a CPU.
        return F.linear(patchify(x_NCHW, self.patch), self.proj.weight.flatten(1), self.proj.bias)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of the timestep, then two linear layers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_EMBEDDING_SIZE, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, t_N: Tensor) -> Tensor:
        """Training steps, integer or not -> [N, D]."""
        embedded_ND: Tensor = self.mlp(timestep_features(t_N, FREQUENCY_EMBEDDING_SIZE))
        return embedded_ND


class LabelEmbedder(nn.Module):
    """A row for each class and, last, the null row: the condition of the unconditional model."""

    def __init__(self, classes: int, hidden: int) -> None:
        super().__init__()
        # The constructor would draw weights, for which torch loads its compiler on the meta device: seconds.
        from_weights: Any = nn.Embedding.from_pretrained  # untyped in torch
        self.embedding_table: nn.Embedding = from_weights(torch.empty(classes + 1, hidden), freeze=False)

    def forward(self, y_N: Tensor) -> Tensor:
        """Labels, int64 in [0, classes] -> [N, D]."""
        embedded_ND: Tensor = self.embedding_table(y_N)
        return embedded_ND


def timestep_features(t_N: Tensor, size: int) -> Tensor:
    """[N] -> [N, size]: cosines, then sines, of `size / 2` periods from 2 pi to 10,000 times that (geometric)."""
    half = size // 2
    exponents_F = -math.log(_LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=t_N.device) / half
    # In float32, as published weights were trained: at step 999 a frequency's rounding reaches its angle's 5th digit.
    # Rounded from float64 it is the same on every device; their float32 exponentials differ in the last bit.
    angles_NF = t_N.float()[:, None] * exponents_F.double().exp().float()
    return torch.cat([angles_NF.cos(), angles_NF.sin()], dim=-1)


def position_table(hidden: int, side: int) -> Tensor:
    """Fixed 2-D sine-cosine positions of a `side` x `side` grid, float32 [T, D].

    The first half of D encodes the column, the second the row; within each, sines precede cosines.
    """
    frequencies = _LONGEST_PERIOD ** -np.linspace(0, 1, hidden // 4, endpoint=False, dtype=np.float64)
    angles = np.arange(side, dtype=np.float64)[:, None] * frequencies
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    table = np.concatenate([np.tile(axis, (side, 1)), np.repeat(axis, side, axis=0)], axis=1)
    return torch.from_numpy(table).float()


def patchify(x_NCHW: Tensor, patch: int) -> Tensor:
    """[N, C, H, W] -> [N, T, C * P * P]: each patch's values, channel by channel, row by row."""
    n, channels, height, width = x_NCHW.shape
    grid = x_NCHW.reshape(n, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * patch * patch)


def unpatchify(x_NTO: Tensor, patch: int) -> Tensor:
    """[N, T, P * P * C] -> [N, C, H, W] of a square grid; here a patch's values lie row by row, channels innermost."""
    n, tokens, values = x_NTO.shape
    side, channels = math.isqrt(tokens), values // patch**2
    grid = x_NTO.reshape(n, side, side, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(n, channels, side * patch, side * patch)
