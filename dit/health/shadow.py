"""A second average of a few weights, in float64, with which the EMA is compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dit.health.learning import EmaView

_TENSORS = 8
_HEAD = "final_layer.linear"


class Shadow:
    """Follows one element in each of 8 tensors. `follow` costs one small copy and does not wait for the device."""

    def __init__(self, weights: Mapping[str, Tensor], average: Mapping[str, Tensor], decay: float) -> None:
        """`weights` are the live parameters, `average` is their live EMA, under the same names."""
        names = [name for name, tensor in weights.items() if tensor.requires_grad]
        # The head is among them: it alone moves in the first step.
        names.sort(key=lambda name: not name.startswith(_HEAD))
        places = np.linspace(0, len(names) - 1, min(_TENSORS, len(names))).astype(int)
        random = np.random.Generator(np.random.SFC64(len(names)))
        chosen = [(names[place], int(random.integers(weights[names[place]].numel()))) for place in places]
        # Views of one element each: they show the live values, wherever the optimizer and the EMA write.
        self._weights = [weights[name].detach().view(-1)[index] for name, index in chosen]
        # On a CPU, to read them through numpy takes a tenth of the time of a copy by torch.
        plain = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in self._weights)
        self._plain = [weight.numpy() for weight in self._weights] if plain else None
        self._average = [average[name].view(-1)[index] for name, index in chosen]
        self._decay, self._updates = decay, 0
        self._pending: list[Tensor | list[float]] = []
        self._initial = self._read(self._average)
        self._expected = self._initial.copy()
        self._largest = np.maximum(np.abs(self._initial), np.abs(self._read(self._weights)))

    def follow(self) -> None:
        """Keep the weights of a step; call it after the optimizer's step."""
        if self._plain is None:
            self._pending.append(torch.stack(self._weights))
        else:
            self._pending.append([weight.item() for weight in self._plain])

    def view(self, step: int) -> EmaView:
        """Return both averages; waits for the device."""
        if self._pending:
            for weights in self._followed():
                self._expected = self._decay * self._expected + (1 - self._decay) * weights
                self._largest = np.maximum(self._largest, np.abs(weights))
            self._updates += len(self._pending)
            self._pending.clear()
        return EmaView(
            step=step,
            updates=self._updates,
            decay=self._decay,
            average=self._read(self._average).tolist(),
            expected=self._expected.tolist(),
            initial=self._initial.tolist(),
            largest=self._largest.tolist(),
        )

    def _followed(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        stacked = [kept for kept in self._pending if isinstance(kept, Tensor)]
        return np.asarray(torch.stack(stacked).double().cpu().numpy() if stacked else self._pending, dtype=np.float64)

    @staticmethod
    def _read(elements: list[Tensor]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.asarray(torch.stack(elements).double().cpu().numpy())
