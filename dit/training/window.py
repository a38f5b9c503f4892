"""The losses of the steps since the last log line, kept on the device until they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from dit.health.steps import StepLosses
from dit.runtime.distributed import Ranks


class LossWindow:
    """Device tensors of the steps since `clear`. `add` starts no transfer and does not wait for the device."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._steps: list[int] = []
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, losses_2: Tensor, grad_norm: Tensor) -> None:
        """Keep a step's losses and gradient norm.

        `losses_2` is (mse, vb), summed over this rank's samples and divided by the global batch. `grad_norm` is the
        norm of the reduced gradient, equal on every rank.
        """
        self._steps.append(step)
        self._losses.append(losses_2)
        self._norms.append(grad_norm)

    def read(self) -> list[StepLosses]:
        """Return the steps' losses over all ranks, in order; empty after `clear`.

        A collective, and the only place where the loop waits for the device.
        """
        if not self._steps:
            return []
        # Each rank holds its share of the mean over the global batch, so the sum over ranks is the mean.
        losses = self._ranks.all_reduce_sum(torch.stack(self._losses))
        table = torch.cat([losses, torch.stack(self._norms)[:, None]], dim=1).tolist()
        return [StepLosses(step, *row) for step, row in zip(self._steps, table, strict=True)]

    def clear(self) -> None:
        """Start a new window."""
        self._steps.clear()
        self._losses.clear()
        self._norms.clear()
