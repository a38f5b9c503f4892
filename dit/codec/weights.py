"""The files of an autoencoder: where they lie, whether they are fit, and what records call them. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path

from dit.errors import DataError, MismatchError, MissingError
from dit.storage import fetch_folder, sha256_file
from dit.study.config import DatasetConfig, PixelCodec

CHANNELS = 4
"""Of a latent."""
# File name, and the variant by which diffusers asks for it; a pickled file is the last resort.
_WEIGHTS = (
    ("diffusion_pytorch_model.safetensors", None),
    ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
    ("diffusion_pytorch_model.bin", None),
)
_LEVELS = 4
"""Resolutions of the autoencoder; each but the first halves the side, which makes 8x8 pixels one position."""


def encoder_sha256(dataset: DatasetConfig) -> str:
    """Of the weights that encode the dataset, without loading them; empty for pixels.

    Raises MissingError or MismatchError also when the decoder's weights, if it has its own, are not there or not fit.
    """
    if isinstance(dataset.codec, PixelCodec):
        return ""
    if dataset.codec.decoder:
        find_weights(dataset.codec.decoder)
    return sha256_file(find_weights(dataset.codec.weights)[1])


def decoder_at_hand(dataset: DatasetConfig) -> str:
    """What the study decodes with, as records name it: `pixels`, or the autoencoder and its weights' SHA-256.

    Empty where the weights are not there, which results that are complete can do without. Raises MismatchError when
    they are not fit.
    """
    if isinstance(dataset.codec, PixelCodec):
        return "pixels"
    try:
        weights = find_weights(dataset.codec.decoder or dataset.codec.weights)[1]
    except MissingError:
        return ""
    return f"AutoencoderKL {sha256_file(weights)[:12]}"


def decoder_differs(made_with: str, decoder: str, remedy: str) -> str | None:
    """What to say where something was decoded with another decoder than the one at hand; None where it was not.

    An empty `decoder` is not known, and not compared.
    """
    if decoder in ("", made_with):
        return None
    return f"decoded with {made_with}, this study decodes with {decoder}; restore dataset.codec, or {remedy}"


def find_weights(address: str) -> tuple[Path, Path, str | None]:
    """Folder, weights file and its variant of an autoencoder; MissingError or MismatchError when none is fit."""
    folder = fetch_folder(address)
    config = folder / "config.json"
    weights = next(((folder / name, variant) for name, variant in _WEIGHTS if (folder / name).is_file()), None)
    if not config.is_file() or weights is None:
        absent = _WEIGHTS[0][0] if config.is_file() else config.name
        raise MissingError(f"dataset.codec: no {absent} in {address}; save an AutoencoderKL there (save_pretrained)")
    _check_architecture(config, address)
    return folder, *weights


def _check_architecture(config: Path, address: str) -> None:
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{address}/config.json: not JSON; fetch the autoencoder again") from None
    expected = {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": CHANNELS}
    found = {key: settings.get(key, value) for key, value in expected.items()}
    levels = len(settings.get("block_out_channels", ()))
    if found != expected or levels != _LEVELS:
        wrong = [f"{key}={value}" for key, value in found.items() if value != expected[key]]
        wrong += [f"{levels} block_out_channels"] * (levels != _LEVELS)
        raise MismatchError(
            f"dataset.codec: {address} has {', '.join(wrong)}; needed is an AutoencoderKL with {CHANNELS} latent"
            f" channels and {_LEVELS} block_out_channels, such as Stable Diffusion's"
        )
