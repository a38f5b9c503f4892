"""Losses and reverse steps against the official code, on the same weights and noise."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from official import LABELS, latents, sine_model, vectors, wave

from dit.diffusion.losses import diffuse, training_losses
from dit.diffusion.sampler import sample
from dit.diffusion.schedule import linear_schedule
from dit.model.transformer import DiT
from dit.study.config import SamplingConfig

SHAPE = (4, 4, 32, 32)
X0, NOISE = wave(SHAPE, 0.53, 0.2), wave(SHAPE, 0.91, 0.4)
T = torch.tensor([0, 1, 500, 999])
Y = torch.tensor([0, 1, 2, 999])


@cache
def model() -> DiT:
    return sine_model("DiT-S/2")


def test_training_losses() -> None:
    expected, schedule = vectors()["train_loss_DiT-S/2_t[0,1,500,999]"], linear_schedule()
    x_t = diffuse(schedule, X0, T, NOISE)
    with torch.inference_mode():
        mse, vb = training_losses(schedule, model()(x_t, T, Y), X0, x_t, T, NOISE)
    assert mse.tolist() == pytest.approx(expected["mse"], rel=2e-6)
    # The official sum of terms that nearly cancel leaves 1e-7 of noise; its values are printed to 1e-7.
    assert vb.tolist() == pytest.approx(expected["vb"], rel=2e-6, abs=2e-7)
    assert (mse + vb).tolist() == pytest.approx(expected["loss"], rel=2e-6)


def test_losses_of_a_model_with_zero_output() -> None:
    schedule = linear_schedule()
    x_t = diffuse(schedule, X0, T, NOISE)
    mse, vb = training_losses(schedule, torch.zeros(4, 8, 32, 32), X0, x_t, T, NOISE)
    assert mse[0].item() == pytest.approx(0.97993, abs=1e-5)
    assert vb.tolist() == pytest.approx([1.7367928, 0.6211332, 0.0077916, 0.0144315], rel=2e-6, abs=2e-7)


def test_ddim_ends_where_the_official_sampler_does() -> None:
    config = SamplingConfig(sampler="ddim", steps=10)
    end = sample(model(), linear_schedule(), lambda _: latents(), LABELS, config, null_label=1000)
    assert end.std().item() == pytest.approx(81.874, abs=5e-4)
