"""diffusers' AutoencoderKL as a codec; the only place that imports diffusers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit.codec.base import LOG_VARIANCE_RANGE, ChannelSums, Codec, to_uint8
from dit.codec.weights import CHANNELS, find_weights
from dit.errors import DataError, MismatchError, one_line
from dit.runtime.torchvision_shim import ensure_torchvision
from dit.study.config import VaeCodec


class Autoencoder(Codec):
    """A pretrained autoencoder in evaluation mode (Rombach et al. 2022, section 3.1)."""

    def __init__(self, config: VaeCodec, device: torch.device, *, decoding: bool, batch: int) -> None:
        folder, weights, variant = find_weights(config, decoding=decoding)
        self._scale, self._device, self._batch = config.scale_factor, device, batch
        self._dtype = getattr(torch, config.dtype)
        # On a GPU, half-precision convolutions are about a third faster with channels innermost.
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        model = _load(folder, weights, variant).to(device=device, dtype=self._dtype, memory_format=layout)
        self._model = model.eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(self, images_NHWC: npt.NDArray[np.uint8], mirror: bool) -> npt.NDArray[np.float16]:
        """See Codec."""
        parts = [self._moments(chunk, mirror) for chunk in torch.split(torch.from_numpy(images_NHWC), self._batch)]
        return torch.cat(parts).cpu().numpy()

    def _moments(self, images_NHWC: Tensor, mirror: bool) -> Tensor:
        # The autoencoder expects pixels in [-1, 1].
        pixels = images_NHWC.to(self._device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).to(self._dtype)
        views = [pixels, pixels.flip(-1)] if mirror else [pixels]
        moments = torch.stack([self._model.encode(view).latent_dist.parameters for view in views], dim=1).float()
        # `parameters` holds mean and log-variance before the autoencoder's own clamp, so it is applied here.
        moments[:, :, CHANNELS:].clamp_(*LOG_VARIANCE_RANGE)
        return moments.half()

    @torch.inference_mode()
    def decode(self, latents_NCHW: Tensor) -> npt.NDArray[np.uint8]:
        """See Codec."""
        return np.concatenate([self._images(chunk) for chunk in torch.split(latents_NCHW, self._batch)])

    def _images(self, latents_NCHW: Tensor) -> npt.NDArray[np.uint8]:
        latents = latents_NCHW.to(self._device).float().div(self._scale).to(self._dtype)
        images = self._model.decode(latents).sample.float()
        if not torch.isfinite(images).all():
            raise DataError(
                "decoded images are not finite: the latents are not, or dataset.codec.dtype is too narrow for them;"
                " check the samples' latents, or use float32"
            )
        return to_uint8(images)

    def sums(self, encoded: npt.NDArray[Any]) -> ChannelSums:
        """See Codec."""
        mean, log_variance = np.split(encoded.astype(np.float64), 2, axis=2)
        # Second moment of a draw z = mean + std * noise: E[z^2] = mean^2 + variance.
        over = (0, 1, 3, 4)
        square = np.square(mean) + np.exp(log_variance)
        return ChannelSums(
            mean.sum(axis=over) * self._scale, square.sum(axis=over) * self._scale**2, mean[:, :, 0].size
        )


def _load(folder: Path, weights: Path, variant: str | None) -> Any:
    """Return the autoencoder with every weight from the file.

    Raises DataError when the file cannot be read, MismatchError when a weight is missing, unknown or of another shape.
    """
    ensure_torchvision()
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.set_verbosity_error()
    try:
        model, report = AutoencoderKL.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=weights.suffix == ".safetensors",
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        reason = one_line(error)[:200]
        raise DataError(f"{weights}: cannot be loaded: {reason}; fetch the autoencoder again") from None
    # diffusers gives missing weights random values and raises nothing.
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise MismatchError(
            f"{weights}: {len(wrong)} weights are missing, unknown or of another shape, such as {wrong[0]};"
            " fetch the weights that belong to config.json"
        )
    return model
