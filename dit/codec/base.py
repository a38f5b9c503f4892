"""Images into what the model is trained on, and back: the interface, and the arithmetic that every codec shares.

Shapes: N samples, M views (image, mirror image), C latent channels, H x W pixels, h x w latent positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Of the posterior's log-variance, as the autoencoder was trained (Rombach et al. 2022, reference implementation).
LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class ChannelSums:
    """First and second moment sums of scaled latents, per channel, from which shards' statistics add up."""

    total: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]
    values: int
    """Per channel."""

    def __add__(self, other: ChannelSums) -> ChannelSums:
        return ChannelSums(self.total + other.total, self.square + other.square, self.values + other.values)


class Codec(ABC):
    """Encodes images for the shards and decodes what the model samples."""

    @abstractmethod
    def encode(self, images_NHWC: npt.NDArray[np.uint8], mirror: bool) -> npt.NDArray[Any]:
        """What a shard stores of each image.

        An autoencoder gives float16 posterior moments [N, M, 2C, h, w], mean before log-variance, M = 2 with the
        mirror image and 1 without; pixels give uint8 [N, C, H, W], because they are mirrored when they are read.
        Values that are not finite are left for the caller to find.
        """

    @abstractmethod
    def decode(self, latents_NCHW: Tensor) -> npt.NDArray[np.uint8]:
        """Images uint8 [N, H, W, C] of scaled latents; DataError when the decoder's output is not finite."""

    @abstractmethod
    def sums(self, encoded: npt.NDArray[Any]) -> ChannelSums:
        """Statistics of the scaled latents that `encode`'s result stands for, posterior noise included."""


def pixels_to_latents(pixels_NCHW: Tensor) -> Tensor:
    """float32 in [-1, 1] of uint8 pixels; `to_uint8` gives the same pixels back."""
    return pixels_NCHW.float().div_(127.5).sub_(1)


def sample_posterior(moments_NMHW: Tensor, noise_NCHW: Tensor, scale_factor: float) -> Tensor:
    """Scaled latents float32 [N, C, h, w]: a draw from the posterior whose moments [N, 2C, h, w] a shard holds."""
    mean, log_variance = moments_NMHW.float().chunk(2, dim=1)
    return torch.addcmul(mean, log_variance.mul(0.5).exp_(), noise_NCHW).mul_(scale_factor)


def to_uint8(images_NCHW: Tensor) -> npt.NDArray[np.uint8]:
    """uint8 [N, H, W, C] on the CPU of images in [-1, 1]: 127.5 x + 128, cut to [0, 255], decimals dropped."""
    scaled = images_NCHW.float().mul(127.5).add_(128).clamp_(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
