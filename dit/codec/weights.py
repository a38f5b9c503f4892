"""The files of an autoencoder: their paths, the check of their architecture, their name in records. Torch-free."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dit.errors import DataError, MismatchError, MissingError, one_line
from dit.storage import fetch_folder, sha256_file
from dit.study import json_values
from dit.study.config import DatasetConfig, PixelCodec, VaeCodec

CHANNELS = 4
"""Channels of a latent."""
# File name, and its name as a diffusers variant, in order of preference. A pickled file comes last.
_WEIGHTS = (
    ("diffusion_pytorch_model.safetensors", None),
    ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
    ("diffusion_pytorch_model.bin", None),
)
_DOWNSAMPLING = 8
"""Pixels along the side of one latent position."""
_STUDY_KEYS = {"scaling_factor": "dataset.codec.scale_factor"}
_REMEDY = "set this key to the autoencoder's value, or correct config.json if it is the one that is wrong"


def encoder_sha256(dataset: DatasetConfig) -> str:
    """Return the SHA-256 of the encoder's weights without loading them; empty for pixels.

    Raises as `find_weights`, for the weights and for those of a separate decoder.
    """
    if isinstance(dataset.codec, PixelCodec):
        return ""
    if dataset.codec.decoder:
        find_weights(dataset.codec, decoding=True)
    return sha256_file(find_weights(dataset.codec, decoding=False)[1])


def decoder_at_hand(dataset: DatasetConfig) -> str:
    """Return the decoder's name in records: `pixels`, or the autoencoder with its weights' SHA-256.

    Empty when there are no weights here, because complete results can be read without them.
    Raises DataError or MismatchError as `find_weights`.
    """
    if isinstance(dataset.codec, PixelCodec):
        return "pixels"
    try:
        weights = find_weights(dataset.codec, decoding=True)[1]
    except MissingError:
        return ""
    return f"AutoencoderKL {sha256_file(weights)[:12]}"


def decoder_differs(made_with: str, decoder: str, remedy: str) -> str | None:
    """Return the problem if samples were not decoded with `decoder`; None if they were, or if `decoder` is empty."""
    if decoder in ("", made_with):
        return None
    return f"decoded with {made_with}, this study decodes with {decoder}; restore dataset.codec, or {remedy}"


def find_weights(codec: VaeCodec, *, decoding: bool) -> tuple[Path, Path, str | None]:
    """Return the folder of the encoder or decoder, its weights file, and the file's diffusers variant.

    Raises MissingError without config.json or weights.
    Raises DataError when config.json is damaged.
    Raises MismatchError, with both values, when config.json has another setting than the study.
    """
    address = (codec.decoder or codec.weights) if decoding else codec.weights
    folder = fetch_folder(address)
    config = folder / "config.json"
    weights = next(((folder / name, variant) for name, variant in _WEIGHTS if (folder / name).is_file()), None)
    if not config.is_file() or weights is None:
        absent = _WEIGHTS[0][0] if config.is_file() else config.name
        raise MissingError(f"dataset.codec: no {absent} in {address}; save an AutoencoderKL there (save_pretrained)")
    _check_settings(_read_settings(config, address), codec, address)
    return folder, *weights


def _read_settings(config: Path, address: str) -> dict[str, Any]:
    try:
        settings = json_values.parse(config.read_text(encoding="utf-8"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise DataError(f"{address}/config.json: not a JSON object; fetch the autoencoder again")
    return settings


def _check_settings(settings: dict[str, Any], codec: VaeCodec, address: str) -> None:
    levels = settings.get("block_out_channels")
    # Each level but the first halves the side.
    downsampling = 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else None
    actual = {**settings, "downsampling": downsampling}
    # Older files lack some settings. The codec only scales latents: it knows no shift, no mean
    # and no standard deviation per channel.
    expected: dict[str, Any] = {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": CHANNELS,
        "downsampling": _DOWNSAMPLING,
        "scaling_factor": codec.scale_factor,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
    }
    wrong = [key for key, value in expected.items() if not _agree(actual.get(key, value), value)]
    if wrong:
        theirs = ", ".join(f"{key}={_text(actual[key])}" for key in wrong)
        ours = ", ".join(f"{_STUDY_KEYS.get(key, key)}={_text(expected[key])}" for key in wrong)
        raise MismatchError(
            f"dataset.codec: {address}/config.json has {theirs}, this study has {ours};"
            f" {_REMEDY if wrong == ['scaling_factor'] else 'use an AutoencoderKL such as Stable Diffusion 1.x has'}"
        )


def _agree(actual: Any, expected: Any) -> bool:
    if isinstance(expected, float) and isinstance(actual, int | float):
        return math.isclose(actual, expected, rel_tol=1e-6)
    # A shift by 0 is none.
    return bool(actual == expected) or (expected is None and actual == 0)


def _text(value: Any) -> str:
    return "none" if value is None else one_line(value)[:60]
