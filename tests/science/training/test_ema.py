"""The average of the weights: closed form, memory, loading."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dit.training.ema import Ema


class TwoTensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
        self.pos_embed = nn.Parameter(torch.full((1, 5), 0.25), requires_grad=False)


@pytest.mark.parametrize("steps", [0, 1, 50])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999])
def test_average_of_constant_weights_has_the_closed_form(decay: float, steps: int) -> None:
    model = TwoTensors()
    ema = Ema(model, decay)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(3)
        model.pos_embed.add_(1)
    for _ in range(steps):
        ema.update()
    theta = model.weight.detach()
    torch.testing.assert_close(ema.tensors["weight"], theta - (theta - start) * decay**steps, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ema.tensors["pos_embed"], torch.full((1, 5), 1.25 - decay**steps), rtol=1e-5, atol=1e-6)


def test_load_copies_a_saved_average() -> None:
    model = TwoTensors()
    ema, other = Ema(model, 0.9), Ema(model, 0.9)
    saved = {name: tensor + 2 for name, tensor in ema.tensors.items()}
    other.load(saved)
    for name, tensor in other.tensors.items():
        assert torch.equal(tensor, saved[name])
        assert tensor is not saved[name]
