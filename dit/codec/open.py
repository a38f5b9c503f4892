"""The codec of a dataset."""

from __future__ import annotations

import torch

from dit.codec.base import Codec
from dit.codec.pixels import Pixels
from dit.study.config import DatasetConfig, PixelCodec


def open_codec(dataset: DatasetConfig, device: torch.device | str, *, decoding: bool, batch: int) -> Codec:
    """The dataset's codec on a device, for encoding or for decoding, `batch` images a call.

    Raises MissingError when its weights are not there, MismatchError when they are of another architecture.
    """
    if isinstance(dataset.codec, PixelCodec):
        return Pixels()
    from dit.codec.autoencoder import Autoencoder  # diffusers takes ten seconds to import

    return Autoencoder(dataset.codec, torch.device(device), decoding=decoding, batch=batch)
