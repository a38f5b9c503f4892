"""Model, sampler, autoencoder and extractor on a GPU against a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_fixtures import folder_study, save_autoencoder
from official import INPUTS, LABELS, TIMESTEPS, assert_official_output, latents, sine_model
from sample_fixtures import VARIANT, save_inception, small_study
from torch import nn

from dit.codec.open import open_codec
from dit.metrics.extractors import open_inception
from dit.model.transformer import DiT
from dit.runtime.device import matmul_precision
from dit.sampling.generate import Generator, trained
from dit.study.config import StudyConfig
from dit.study.variants import resolve

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("variant", ["DiT-S/2", "DiT-XL/4"])
def test_outputs_are_those_of_the_official_model(gpu: torch.device, variant: str, compiled: bool) -> None:
    matmul_precision("fp32", gpu)
    model = sine_model(variant).to(gpu)
    if compiled:
        model.compile_layers()
    with torch.inference_mode():
        assert_official_output(variant, model(latents().to(gpu), TIMESTEPS.to(gpu), LABELS.to(gpu)).cpu())


def test_initial_weights_are_the_same_on_every_device(gpu: torch.device) -> None:
    with gpu:
        model = DiT(resolve("DiT-S/2"), INPUTS)
    assert model.pos_embed.is_cuda
    expected = DiT(resolve("DiT-S/2"), INPUTS).state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight.cpu(), expected[name], rtol=0, atol=0)


def drawn(config: StudyConfig, device: torch.device, *, compiled: bool = False) -> torch.Tensor:
    """Latents of 40 samples of a model with random weights."""
    spec, random = config.spec(VARIANT), torch.Generator().manual_seed(0)
    model = DiT(spec, config.dataset.inputs)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05, generator=random)
    denoise = trained(config, spec, model.state_dict(), device, compiled=compiled)
    codec = open_codec(config.dataset, device, decoding=True, batch=16)
    return torch.from_numpy(Generator(config, denoise, codec, device, 25).draw(range(40)).latents)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samples_are_those_of_a_cpu(gpu: torch.device, sampler: str, compiled: bool) -> None:
    """The noise does not depend on the device, so sample grids can be compared."""
    exactly = ("sampling.precision=fp32", "sampling.cfg_scale=1.5", "sampling.steps=20")
    config = small_study(f"sampling.sampler={sampler}", *exactly)
    expected = drawn(config, CPU)
    near = 1e-4 * expected.std().item()
    torch.testing.assert_close(drawn(config, gpu, compiled=compiled), expected, rtol=0, atol=near)


def test_latents_and_images_of_the_autoencoder_are_those_of_a_cpu(gpu: torch.device, tmp_path: Path) -> None:
    save_autoencoder(tmp_path / "vae", channels=(32, 32, 64, 64))
    config = folder_study(tmp_path, codec={"kind": "vae", "weights": str(tmp_path / "vae")})
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)

    def encoded(device: torch.device) -> np.ndarray:
        return open_codec(config.dataset, device, decoding=False, batch=2).encode(images, mirror=True)

    moments = encoded(CPU)
    np.testing.assert_allclose(encoded(gpu), moments, rtol=1e-2, atol=1e-2)
    latents_NCHW = torch.from_numpy(moments[:, 0, :4]).float()

    def decoded(device: torch.device) -> np.ndarray:
        return open_codec(config.dataset, device, decoding=True, batch=2).decode(latents_NCHW).astype(int)

    assert np.abs(decoded(CPU) - decoded(gpu)).max() <= 2


def test_inception_features_are_those_of_a_cpu(gpu: torch.device, tmp_path: Path) -> None:
    sha256 = save_inception(tmp_path / "inception.pth")
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    results = [open_inception(tmp_path / "inception.pth", sha256, device, "fp32")(images) for device in (CPU, gpu)]
    torch.testing.assert_close(results[1].features, results[0].features, rtol=1e-3, atol=1e-5)
