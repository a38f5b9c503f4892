"""Pixels scaled to [-1, 1], for images small enough to need no autoencoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dit.codec.base import ChannelSums, Codec, to_uint8


class Pixels(Codec):
    """Pixels scaled to [-1, 1] as latents."""

    def encode(self, images_NHWC: npt.NDArray[np.uint8], mirror: bool) -> npt.NDArray[np.uint8]:  # noqa: ARG002
        """See Codec."""
        return np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2))

    def decode(self, latents_NCHW: Tensor) -> npt.NDArray[np.uint8]:
        """See Codec."""
        return to_uint8(latents_NCHW)

    def sums(self, encoded: npt.NDArray[Any]) -> ChannelSums:
        """See Codec."""
        values = encoded.astype(np.float64) / 127.5 - 1
        over = (0, 2, 3)
        return ChannelSums(values.sum(axis=over), np.square(values).sum(axis=over), values[:, 0].size)
