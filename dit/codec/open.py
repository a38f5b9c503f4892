"""Opens the codec of a dataset."""

from __future__ import annotations

import torch

from dit.codec.base import Codec
from dit.codec.pixels import Pixels
from dit.study.config import DatasetConfig, PixelCodec


def open_codec(dataset: DatasetConfig, device: torch.device | str, *, decoding: bool, batch: int) -> Codec:
    """Return the dataset's codec on a device, for encoding or for decoding, with `batch` images per call of the model.

    Raises MissingError without its weights, MismatchError when they are of another architecture, DataError when they
    cannot be read.
    """
    if isinstance(dataset.codec, PixelCodec):
        return Pixels()
    from dit.codec.autoencoder import Autoencoder  # importing diffusers takes ten seconds

    return Autoencoder(dataset.codec, torch.device(device), decoding=decoding, batch=batch)
