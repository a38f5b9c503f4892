"""diffusers' AutoencoderKL behind the codec's interface, randomly initialised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_fixtures import folder_study, save_autoencoder
from safetensors.torch import load_file, save_file

from dit.codec.base import to_uint8
from dit.codec.open import open_codec
from dit.codec.weights import decoder_at_hand, encoder_sha256
from dit.errors import DataError, MismatchError
from dit.storage import sha256_file
from dit.study.config import DatasetConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("vae")
    return path, save_autoencoder(path)


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def dataset(weights: Path, **codec: Any) -> DatasetConfig:
    return folder_study("unused", image_size=32, codec={"kind": "vae", "weights": str(weights), **codec}).dataset


def encoded(weights: Path, images: Any, **codec: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Moments of the images without their mirror images."""
    return open_codec(dataset(weights, **codec), "cpu", decoding=False, batch=5).encode(images, mirror=False)


def copy(source: Path, target: Path, **settings: Any) -> Path:
    target.mkdir()
    (target / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes())
    (target / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | settings))
    return target


def test_moments_are_those_of_the_autoencoder_for_image_and_mirror_image(saved: tuple[Path, Any], images: Any) -> None:
    path, model = saved
    codec = open_codec(dataset(path), "cpu", decoding=False, batch=2)
    moments = codec.encode(images, mirror=True)
    assert (moments.shape, moments.dtype) == ((5, 2, 8, 4, 4), np.float16)
    assert encoder_sha256(dataset(path)) == sha256_file(path / WEIGHTS)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    for view, batch in enumerate((pixels, pixels.flip(3))):
        with torch.no_grad():
            posterior = model.encode(batch).latent_dist
        assert np.allclose(moments[:, view, :4], posterior.mean, rtol=2e-3, atol=2e-3)
        assert np.allclose(moments[:, view, 4:], posterior.logvar, rtol=2e-3, atol=2e-3)
    assert np.array_equal(codec.encode(images, mirror=False), moments[:, :1])


def test_statistics_include_the_posteriors_noise(saved: tuple[Path, Any], tmp_path: Path, images: Any) -> None:
    path = copy(saved[0], tmp_path / "scaled", scaling_factor=0.5)
    codec = open_codec(dataset(path, scale_factor=0.5), "cpu", decoding=False, batch=4)
    moments = codec.encode(images, mirror=True)
    sums = codec.sums(moments)
    mean, std = np.split(moments.astype(np.float64), 2, axis=2)
    draws = 0.5 * (mean + np.exp(std / 2) * np.random.default_rng(1).standard_normal((400, *mean.shape)))
    assert sums.values == mean[:, :, 0].size
    assert np.allclose(sums.total / sums.values, draws.mean(axis=(0, 1, 2, 4, 5)), atol=0.01)
    assert np.allclose(sums.square / sums.values, (draws**2).mean(axis=(0, 1, 2, 4, 5)), rtol=0.02)


def test_decoding_divides_by_the_scale_and_rounds(saved: tuple[Path, Any], tmp_path: Path) -> None:
    path, model = copy(saved[0], tmp_path / "scaled", scaling_factor=0.3), saved[1]
    latents = torch.randn(5, 4, 4, 4)
    codec = open_codec(dataset(path, scale_factor=0.3), "cpu", decoding=True, batch=2)
    with torch.no_grad():
        expected = to_uint8(model.decode(latents / 0.3).sample)
    decoded = codec.decode(latents)
    assert (decoded.shape, decoded.dtype) == ((5, 32, 32, 3), np.uint8)
    assert np.abs(decoded.astype(int) - expected.astype(int)).max() <= 1
    with pytest.raises(DataError, match="not finite"):
        codec.decode(torch.full((1, 4, 4, 4), float("nan")))


def test_separate_decoder_is_used_for_decoding_only(saved: tuple[Path, Any], tmp_path: Path, images: Any) -> None:
    save_autoencoder(tmp_path / "other", seed=9)
    both = dataset(saved[0], decoder=str(tmp_path / "other"))
    latents = torch.randn(2, 4, 4, 4)
    own, other = (open_codec(config, "cpu", decoding=True, batch=2) for config in (dataset(saved[0]), both))
    assert not np.array_equal(own.decode(latents), other.decode(latents))
    assert np.array_equal(encoded(saved[0], images), encoded(saved[0], images, decoder=str(tmp_path / "other")))
    assert encoder_sha256(both) == encoder_sha256(dataset(saved[0]))


def test_decoder_is_named_by_the_hash_of_its_weights(saved: tuple[Path, Any], tmp_path: Path) -> None:
    save_autoencoder(tmp_path / "other", seed=9)
    moved, absent = copy(saved[0], tmp_path / "moved"), tmp_path / "absent"
    own = decoder_at_hand(dataset(saved[0]))
    assert own == f"AutoencoderKL {sha256_file(saved[0] / WEIGHTS)[:12]}"
    assert decoder_at_hand(dataset(moved)) == decoder_at_hand(dataset(absent, decoder=str(moved))) == own
    other = decoder_at_hand(dataset(saved[0], decoder=str(tmp_path / "other")))
    assert other == f"AutoencoderKL {sha256_file(tmp_path / 'other' / WEIGHTS)[:12]}"
    assert decoder_at_hand(dataset(saved[0], decoder=str(absent))) == ""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_moments_are_close_to_float32(saved: tuple[Path, Any], images: Any, dtype: str) -> None:
    full, half = encoded(saved[0], images), encoded(saved[0], images, dtype=dtype)
    error = np.abs(half.astype(np.float32) - full.astype(np.float32))
    assert 0 < error.mean() < 0.05 * np.abs(full.astype(np.float32)).mean()


def test_weights_with_old_attention_names_load(saved: tuple[Path, Any], tmp_path: Path, images: Any) -> None:
    old = copy(saved[0], tmp_path / "old")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(old / WEIGHTS)
    renamed = {}
    for name, value in weights.items():
        for new, former in names.items():
            name = name.replace(f".{new}.", f".{former}.")
        renamed[name] = value
    assert renamed.keys() != weights.keys()
    save_file(renamed, old / WEIGHTS)
    assert np.array_equal(encoded(old, images), encoded(saved[0], images))


def test_pickled_weights_load_without_unpickling_objects(saved: tuple[Path, Any], tmp_path: Path, images: Any) -> None:
    folder = copy(saved[0], tmp_path / "pickled")
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert np.array_equal(encoded(folder, images), encoded(saved[0], images))
    torch.save({"a": Path("object")}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match=r"diffusion_pytorch_model\.bin"):
        open_codec(dataset(folder), "cpu", decoding=False, batch=5)


def test_weights_that_do_not_fit_are_refused(saved: tuple[Path, Any], tmp_path: Path) -> None:
    lacking = copy(saved[0], tmp_path / "lacking")
    weights = load_file(lacking / WEIGHTS)
    del weights["encoder.conv_in.weight"]
    save_file(weights, lacking / WEIGHTS)
    with pytest.raises(MismatchError, match=r"encoder\.conv_in\.weight"):
        open_codec(dataset(lacking), "cpu", decoding=False, batch=1)
    cut = copy(saved[0], tmp_path / "cut")
    (cut / WEIGHTS).write_bytes((cut / WEIGHTS).read_bytes()[:5000])
    with pytest.raises(DataError, match=WEIGHTS):
        open_codec(dataset(cut), "cpu", decoding=False, batch=1)


@pytest.mark.parametrize(
    ("setting", "theirs", "ours"),
    [
        ({"latent_channels": 16}, "latent_channels=16", "latent_channels=4"),
        ({"block_out_channels": [8, 8, 8]}, "downsampling=4", "downsampling=8"),
        ({"in_channels": 1}, "in_channels=1", "in_channels=3"),
        ({"_class_name": "AutoencoderTiny"}, "_class_name=AutoencoderTiny", "_class_name=AutoencoderKL"),
        ({"scaling_factor": 1.5305}, "scaling_factor=1.5305", "dataset.codec.scale_factor=0.18215"),
        ({"scaling_factor": None}, "scaling_factor=none", "dataset.codec.scale_factor=0.18215"),
        ({"shift_factor": 0.0609}, "shift_factor=0.0609", "shift_factor=none"),
        ({"latents_mean": [0.1, 0.2, 0, 0]}, r"latents_mean=\[0.1, 0.2, 0, 0\]", "latents_mean=none"),
        ({"latents_std": [2, 2, 2, 2]}, r"latents_std=\[2, 2, 2, 2\]", "latents_std=none"),
    ],
)
def test_setting_of_the_weights_that_the_study_contradicts_is_refused_with_both_values(
    saved: tuple[Path, Any], tmp_path: Path, setting: dict[str, Any], theirs: str, ours: str
) -> None:
    other = copy(saved[0], tmp_path / "other", **setting)
    for config in (dataset(other), dataset(saved[0], decoder=str(other))):
        with pytest.raises(MismatchError, match=rf"other/config\.json has {theirs}, this study has {ours};"):
            encoder_sha256(config)
        with pytest.raises(MismatchError, match=theirs):
            open_codec(config, "cpu", decoding=config.codec != dataset(other).codec, batch=1)


def test_settings_that_agree_or_are_missing_are_accepted(saved: tuple[Path, Any], tmp_path: Path) -> None:
    own = copy(saved[0], tmp_path / "own", scaling_factor=0.13025, shift_factor=0.0)
    assert encoder_sha256(dataset(own, scale_factor=0.13025))
    settings = json.loads((own / "config.json").read_text())
    for key in ("scaling_factor", "shift_factor", "latents_mean", "latents_std"):
        settings.pop(key, None)
    (own / "config.json").write_text(json.dumps(settings))
    assert encoder_sha256(dataset(own, scale_factor=0.7))
    for damaged in ("[1]", "[" * 100_000, "{"):
        (own / "config.json").write_text(damaged)
        with pytest.raises(DataError, match=r"own/config\.json: not a JSON object"):
            encoder_sha256(dataset(own))
