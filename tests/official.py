"""Weights, inputs and labels in closed form, for which tests/parity has the official outputs."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dit.model.embeddings import position_table
from dit.model.transformer import DiT
from dit.study.variants import InputSpec, resolve

INPUTS = InputSpec(channels=4, size=32, classes=1000)
LABELS = torch.tensor([207, 1000])
TIMESTEPS = torch.tensor([10, 900])
# The sine weights sum coherently, so float32 rounding reaches 2e-6 of the output's spread.
RELATIVE = 5e-6


@cache
def vectors() -> dict[str, Any]:
    return dict(json.loads((Path(__file__).parent / "parity" / "official-vectors.json").read_text()))


def wave(shape: tuple[int, ...], frequency: float, phase: float) -> Tensor:
    """1.4 sin(frequency i + phase) over the flat index i, float64 then float32."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return (1.4 * torch.sin(frequency * index + phase)).float().view(shape)


def assert_official_output(variant: str, output: Tensor) -> None:
    """Compare `sine_model(variant)(latents(), TIMESTEPS, LABELS)` with the official model's output."""
    expected = vectors()[f"fwd_{variant}"]
    near = {"abs": RELATIVE * expected["std"]}
    assert output.double().mean().item() == pytest.approx(expected["mean"], **near)
    assert output.double().std().item() == pytest.approx(expected["std"], **near)
    assert output[0, 0, 0, :3].tolist() == pytest.approx(expected["o[0,0,0,:3]"], **near)
    assert output[1, 7, 31, -3:].tolist() == pytest.approx(expected["o[1,7,31,-3:]"], **near)


def latents(count: int = 2) -> Tensor:
    return wave((count, 4, 32, 32), 0.37, 0.11)


def sine_model(variant: str) -> DiT:
    """The variant with w.flat[i] = 0.05 sin(0.7 i + 1.3 k + 1), k counting the sorted names; positions stay."""
    spec = resolve(variant)
    with torch.device("meta"):
        model = DiT(spec, INPUTS)
    names = sorted(name for name, _ in model.named_parameters())
    longest = max(parameter.numel() for parameter in model.parameters())
    angles = 0.7 * torch.arange(longest, dtype=torch.float64)
    # Sine of a sum: two passes over the larger models' 675 million weights instead of their sines.
    sine, cosine = 0.05 * angles.sin(), 0.05 * angles.cos()
    weights = {"pos_embed": position_table(spec.hidden, INPUTS.size // spec.patch)[None]}
    for k, name in enumerate(names):
        if name == "pos_embed":
            continue
        shape, phase = model.get_parameter(name).shape, 1.3 * k + 1
        count = shape.numel()
        values = (sine[:count] * math.cos(phase)).add_(cosine[:count], alpha=math.sin(phase))
        weights[name] = values.float().view(shape)
    model.load_state_dict(weights, assign=True)
    return model.eval()
