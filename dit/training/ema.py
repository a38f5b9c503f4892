"""The exponential moving average of the weights, which is what gets sampled (paper, section 4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Average of all parameters, frozen ones included, in their float32, updated every step by one multi-tensor call.

    avg_0 = theta_0 and avg_k = d avg_(k-1) + (1 - d) theta_k; so after n steps at constant weights theta it is
    theta - (theta - theta_0) d^n.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self.tensors: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }
        self._averages = list(self.tensors.values())
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Move the average towards the model's present weights."""
        self._average(self._averages, self._parameters, None)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a saved average; the names and shapes have been checked by the caller."""
        for name, average in self.tensors.items():
            average.copy_(tensors[name])
