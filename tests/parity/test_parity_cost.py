"""Parameters and Gflops of the paper's 12 models: the formulas against the paper and against the model."""

from __future__ import annotations

import pytest
import torch
from official import INPUTS
from torch.utils.flop_counter import FlopCounterMode

from dit.model.transformer import DiT
from dit.study.paper import paper
from dit.study.variants import VARIANTS, InputSpec, resolve

PUBLISHED = paper().models
DIGITS = InputSpec(channels=1, size=8, classes=10)


@pytest.mark.parametrize("variant", list(PUBLISHED))
def test_parameters_are_exactly_the_published_ones(variant: str) -> None:
    spec = resolve(variant)
    with torch.device("meta"):
        model = DiT(spec, INPUTS)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == PUBLISHED[variant].parameters
    assert spec.parameters(INPUTS) == counted


@pytest.mark.parametrize("variant", list(PUBLISHED))
def test_gflops_are_the_published_ones(variant: str) -> None:
    """To 0.1 %, or half of the last printed digit where that is coarser."""
    assert resolve(variant).gflops(INPUTS) == pytest.approx(PUBLISHED[variant].gflops, rel=1e-3, abs=0.005)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_counted_macs_are_those_of_the_model(variant: str) -> None:
    """torch counts a multiply-accumulate as two; on the meta device nothing is computed."""
    spec = resolve(variant)
    inputs = INPUTS if variant in PUBLISHED else DIGITS
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = DiT(spec, inputs)
        model(torch.empty(1, inputs.channels, inputs.size, inputs.size), torch.zeros(1), torch.zeros(1).long())
    assert counter.get_total_flops() == pytest.approx(2 * spec.macs(inputs), rel=1e-3)
