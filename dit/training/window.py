"""The losses of the steps since the last log line, kept on the device until somebody asks."""

from __future__ import annotations

import torch
from torch import Tensor

from dit.health.steps import StepLosses
from dit.runtime.distributed import Ranks


class LossWindow:
    """Device tensors of the steps since `clear`: adding one starts no transfer and waits for nothing."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._steps: list[int] = []
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, losses_2: Tensor, grad_norm: Tensor) -> None:
        """Keep a step's losses and gradient norm.

        `losses_2` is (mse, vb), summed over this rank's samples and divided by the global batch. The norm is that of
        the reduced gradient, the same on every rank.
        """
        self._steps.append(step)
        self._losses.append(losses_2)
        self._norms.append(grad_norm)

    def read(self) -> list[StepLosses]:
        """Sum over ranks and bring to the host, in order of steps. A collective, and the loop's one device sync."""
        if not self._steps:
            return []
        losses = self._ranks.all_reduce_sum(torch.stack(self._losses))
        table = torch.cat([losses, torch.stack(self._norms)[:, None]], dim=1).tolist()
        return [StepLosses(step, *row) for step, row in zip(self._steps, table, strict=True)]

    def clear(self) -> None:
        """Begin a new window."""
        self._steps.clear()
        self._losses.clear()
        self._norms.clear()
