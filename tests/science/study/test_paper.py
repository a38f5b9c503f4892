"""The paper's numbers as data are complete and agree with our table of models."""

from __future__ import annotations

import pytest

from dit.study.paper import paper, seed_note
from dit.study.variants import VARIANTS, InputSpec

LATENT = InputSpec(channels=4, size=32, classes=1000)


def test_the_papers_twelve_models_are_ours() -> None:
    assert paper().models.keys() <= VARIANTS.keys()
    assert len(paper().models) == 12


@pytest.mark.parametrize("name", sorted(paper().models))
def test_our_models_have_the_papers_size_and_cost(name: str) -> None:
    published, spec = paper().models[name], VARIANTS[name]
    assert spec.parameters(LATENT) == published.parameters
    # The paper gives two decimals, which are 0.7 % of the smallest model.
    assert spec.gflops(LATENT) == pytest.approx(published.gflops, rel=1e-3, abs=0.005)


def test_curves_fall_and_end_at_the_values_of_the_table() -> None:
    for name, curve in paper().curves.items():
        values = [curve[step] for step in sorted(curve)]
        assert values == sorted(values, reverse=True)
        assert curve[400_000] == pytest.approx(0.94 * paper().models[name].fid_400k, rel=0.01)


def test_every_published_model_is_better_than_noise() -> None:
    assert max(model.fid_400k for model in paper().models.values()) < paper().noise_floor / 2


def test_loss_gates_fall_with_training() -> None:
    gates = paper().loss_gates
    assert [gate.first_step for gate in gates] == sorted(gate.first_step for gate in gates)
    assert [gate.loss for gate in gates] == sorted((gate.loss for gate in gates), reverse=True)


def test_guidance_scales_and_repeated_trainings_are_included() -> None:
    assert paper().xl2_7m[1.5].fid == 2.27
    assert "DiT-XL/2 19.5, 18.1" in seed_note()
