"""The interface of codecs (images to scaled latents and back), and the arithmetic that they share.

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

# Bounds of the posterior's log-variance, with which the autoencoder was trained (Rombach et al. 2022).
LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class ChannelSums:
    """Sums per channel [C] of scaled latents and of their squares; sums of shards add up to those of the dataset."""

    total: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]
    values: int
    """Number of values per channel."""

    def __add__(self, other: ChannelSums) -> ChannelSums:
        return ChannelSums(self.total + other.total, self.square + other.square, self.values + other.values)


class Codec(ABC):
    """Encodes images for the shards and decodes latents that the model samples.

    codec = open_codec(config.dataset, "cuda", decoding=True, batch=64)
    images = codec.decode(latents)  # uint8 [N, H, W, C]
    """

    @abstractmethod
    def encode(self, images_NHWC: npt.NDArray[np.uint8], mirror: bool) -> npt.NDArray[Any]:
        """Return the values that a shard stores for uint8 images [N, H, W, C].

        An autoencoder returns float16 posterior moments [N, M, 2C, h, w]: mean, then log-variance; M is 2 with the
        mirror image and 1 without. Pixels are uint8 [N, C, H, W], mirrored when they are read. The caller checks that
        values are finite.
        """

    @abstractmethod
    def decode(self, latents_NCHW: Tensor) -> npt.NDArray[np.uint8]:
        """Return uint8 images [N, H, W, C] of scaled latents [N, C, h, w].

        Raises DataError when the decoder's output is not finite.
        """

    @abstractmethod
    def sums(self, encoded: npt.NDArray[Any]) -> ChannelSums:
        """Return the sums over the scaled latents of `encode`'s result, posterior noise included."""


def pixels_to_latents(pixels_NCHW: Tensor) -> Tensor:
    """Return float32 in [-1, 1], of the same shape as the uint8 pixels; `to_uint8` inverts it exactly."""
    return pixels_NCHW.float().div_(127.5).sub_(1)


def sample_posterior(moments_NMHW: Tensor, noise_NCHW: Tensor, scale_factor: float) -> Tensor:
    """Return scaled latents float32 [N, C, h, w], drawn from the posterior with these moments [N, 2C, h, w].

    `scale_factor` gives latents about unit variance, as the noise has it (Rombach et al. 2022, appendix G).
    """
    # mean + std * noise: the reparameterisation of Kingma & Welling 2014, section 2.4.
    mean, log_variance = moments_NMHW.float().chunk(2, dim=1)
    return torch.addcmul(mean, log_variance.mul(0.5).exp_(), noise_NCHW).mul_(scale_factor)


def to_uint8(images_NCHW: Tensor) -> npt.NDArray[np.uint8]:
    """Return uint8 images [N, H, W, C] on the CPU from images [N, C, H, W] in [-1, 1]; values outside are clamped."""
    # 127.5 x + 128, truncated, rounds 127.5 (x + 1) half up. Without the half, images get darker and FIDs change.
    scaled = images_NCHW.float().mul(127.5).add_(128).clamp_(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
