"""Pixels, posterior draws, rounding to uint8, and missing weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_fixtures import digits_study, folder_study

from dit.codec.base import pixels_to_latents, sample_posterior, to_uint8
from dit.codec.open import open_codec
from dit.codec.pixels import Pixels
from dit.codec.weights import encoder_sha256
from dit.errors import MissingError


def test_every_grey_level_survives_encoding_and_decoding() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    codec = open_codec(digits_study().dataset, "cpu", decoding=True, batch=4)
    latents = pixels_to_latents(torch.from_numpy(codec.encode(levels, mirror=False)))
    assert (latents.min(), latents.max()) == (-1, 1)
    assert np.array_equal(codec.decode(latents), levels)


def test_to_uint8_rounds_half_up_and_clamps() -> None:
    x = torch.tensor([-7.0, -1.0, -0.0039, 0.0, 0.0039, 1.0, 1.01, 80.0]).reshape(1, 1, 2, 4)
    assert to_uint8(x).ravel().tolist() == [0, 0, 127, 128, 128, 255, 255, 255]
    assert to_uint8(torch.full((1, 1, 1, 1), -7.0, dtype=torch.bfloat16)).item() == 0


def test_pixels_keep_channels_and_sum_up_their_statistics() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    encoded = Pixels().encode(images, mirror=True)
    assert encoded.shape == (5, 3, 4, 6)
    assert np.array_equal(encoded[2, 1], images[2, :, :, 1])
    sums = Pixels().sums(encoded)
    values = images / 127.5 - 1
    assert np.allclose(sums.total / sums.values, values.mean(axis=(0, 1, 2)))
    assert np.allclose(sums.square / sums.values, (values**2).mean(axis=(0, 1, 2)))


def test_posterior_draw_is_mean_plus_noise_scaled() -> None:
    mean, log_variance = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    noise = torch.randn(2, 4, 3, 3)
    latents = sample_posterior(torch.cat([mean, log_variance], dim=1), noise, 0.5)
    assert torch.allclose(latents, 0.5 * (mean + torch.exp(log_variance / 2) * noise), atol=1e-6)


def test_missing_weights_are_reported_by_name(tmp_path: Path) -> None:
    absent = folder_study(tmp_path, codec={"kind": "vae", "weights": str(tmp_path / "vae")})
    with pytest.raises(MissingError, match="no such folder"):
        encoder_sha256(absent.dataset)
    (tmp_path / "vae").mkdir()
    with pytest.raises(MissingError, match=r"config\.json"):
        encoder_sha256(absent.dataset)
    (tmp_path / "vae" / "config.json").write_text("{}")
    with pytest.raises(MissingError, match=r"diffusion_pytorch_model\.safetensors"):
        open_codec(absent.dataset, "cpu", decoding=False, batch=1)
