"""The files of an autoencoder: their paths, the check of their architecture, their name in records. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path

from dit.errors import DataError, MismatchError, MissingError
from dit.storage import fetch_folder, sha256_file
from dit.study.config import DatasetConfig, PixelCodec

CHANNELS = 4
"""Channels of a latent."""
# File name, and its name as a diffusers variant, in order of preference. A pickled file comes last.
_WEIGHTS = (
    ("diffusion_pytorch_model.safetensors", None),
    ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
    ("diffusion_pytorch_model.bin", None),
)
_LEVELS = 4
"""Resolutions of the autoencoder. Each but the first halves the side, so 8x8 pixels are one latent position."""


def encoder_sha256(dataset: DatasetConfig) -> str:
    """Return the SHA-256 of the encoder's weights without loading them; empty for pixels.

    Raises MissingError or MismatchError when the weights, or those of a separate decoder, are missing or of another
    architecture.
    """
    if isinstance(dataset.codec, PixelCodec):
        return ""
    if dataset.codec.decoder:
        find_weights(dataset.codec.decoder)
    return sha256_file(find_weights(dataset.codec.weights)[1])


def decoder_at_hand(dataset: DatasetConfig) -> str:
    """Return the decoder's name in records: `pixels`, or the autoencoder with its weights' SHA-256.

    Empty when there are no weights here, because complete results can be read without them.
    Raises MismatchError when the weights are of another architecture.
    """
    if isinstance(dataset.codec, PixelCodec):
        return "pixels"
    try:
        weights = find_weights(dataset.codec.decoder or dataset.codec.weights)[1]
    except MissingError:
        return ""
    return f"AutoencoderKL {sha256_file(weights)[:12]}"


def decoder_differs(made_with: str, decoder: str, remedy: str) -> str | None:
    """Return the problem if samples were not decoded with `decoder`; None if they were, or if `decoder` is empty."""
    if decoder in ("", made_with):
        return None
    return f"decoded with {made_with}, this study decodes with {decoder}; restore dataset.codec, or {remedy}"


def find_weights(address: str) -> tuple[Path, Path, str | None]:
    """Return an autoencoder's folder, its weights file, and the file's diffusers variant.

    Raises MissingError without config.json or weights, DataError when config.json is damaged, MismatchError when the
    architecture is another.
    """
    folder = fetch_folder(address)
    config = folder / "config.json"
    weights = next(((folder / name, variant) for name, variant in _WEIGHTS if (folder / name).is_file()), None)
    if not config.is_file() or weights is None:
        absent = _WEIGHTS[0][0] if config.is_file() else config.name
        raise MissingError(f"dataset.codec: no {absent} in {address}; save an AutoencoderKL there (save_pretrained)")
    _check_architecture(config, address)
    return folder, *weights


def own_scale_factor(dataset: DatasetConfig) -> float | None:
    """Return the scale factor in the autoencoder's settings; None if it has none, and for pixels."""
    if isinstance(dataset.codec, PixelCodec):
        return None
    settings = json.loads((find_weights(dataset.codec.weights)[0] / "config.json").read_text(encoding="utf-8"))
    scale = settings.get("scaling_factor")
    return None if scale is None else float(scale)


def _check_architecture(config: Path, address: str) -> None:
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{address}/config.json: not JSON; fetch the autoencoder again") from None
    expected = {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": CHANNELS}
    actual = {key: settings.get(key, value) for key, value in expected.items()}
    levels = len(settings.get("block_out_channels", ()))
    if actual != expected or levels != _LEVELS:
        wrong = [f"{key}={value}" for key, value in actual.items() if value != expected[key]]
        wrong += [f"{levels} block_out_channels"] * (levels != _LEVELS)
        raise MismatchError(
            f"dataset.codec: {address} has {', '.join(wrong)}; use an AutoencoderKL with {CHANNELS} latent"
            f" channels and {_LEVELS} block_out_channels, such as Stable Diffusion's"
        )
