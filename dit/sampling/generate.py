"""Draws images with the study's sampler and decoder, from a checkpoint's model or any other denoiser.

Shape letters: N samples, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dit.codec.base import Codec
from dit.console import Progress
from dit.diffusion.sampler import Denoiser, sample
from dit.diffusion.schedule import SCHEDULES
from dit.errors import DivergedError
from dit.model.transformer import DiT
from dit.runtime.device import autocast, matmul_precision
from dit.sampling.noise import NoiseStream, sample_labels
from dit.sampling.sets import Drawn, Labels
from dit.study.config import StudyConfig
from dit.study.variants import ModelSpec


class Generator:
    """A denoiser with the study's sampler, noise, labels and decoder; `draw` draws any samples of the set."""

    def __init__(
        self, config: StudyConfig, denoise: Denoiser, codec: Codec | None, device: torch.device, batch: int
    ) -> None:
        """`codec` decodes the images; None where only latents are drawn."""
        self._sampling, self._inputs = config.sampling, config.dataset.inputs
        self._denoise, self._codec = denoise, codec
        self._device, self._batch = device, batch
        self._schedule = SCHEDULES[config.train.schedule]()
        self.labels: Labels = sample_labels(config.sampling, self._inputs.classes)

    def draw(self, indices: Sequence[int], progress: Progress | None = None) -> Drawn:
        """Images and latents of these samples, drawn in batches of about equal size; `progress` counts images.

        Raises DivergedError when the model's output is not finite.
        """
        started = time.perf_counter()
        latents, images = [], []
        for batch in np.array_split(np.asarray(indices), -(-len(indices) // self._batch)):
            latents_NCHW = self.latents(batch, progress)
            assert self._codec is not None
            images.append(self._codec.decode(latents_NCHW))
            latents.append(latents_NCHW.cpu().numpy())
        return Drawn(np.concatenate(images), np.concatenate(latents), time.perf_counter() - started)

    def latents(self, indices: Labels, progress: Progress | None = None) -> Tensor:
        """Latents of these samples, drawn in one batch, float32 [N, C, H, W].

        Raises DivergedError when the model's output is not finite.
        """
        labels_N = torch.from_numpy(self.labels[indices])
        on_step = None if progress is None else _count_images(progress, len(indices), self._sampling.steps)
        with NoiseStream(self._sampling, indices.tolist(), self._inputs, self._device) as noise:
            # The label after the last class is "no class", for classifier-free guidance (DiT, section 3.1).
            null_label = self._inputs.classes
            latents = sample(self._denoise, self._schedule, noise, labels_N, self._sampling, null_label, on_step)
        if not bool(torch.isfinite(latents).all()):
            raise DivergedError(
                "samples are not finite: the checkpoint's weights are not finite, or sampling.precision is too low for"
                " them; check the training loss, or set sampling.precision=fp32"
            )
        return latents


def _count_images(progress: Progress, images: int, steps: int) -> Callable[[], None]:
    """Advance the progress by a share of the images at each reverse step, so that a long batch shows its progress."""
    shares = iter(np.diff(np.arange(steps + 1) * images // steps).tolist())
    return lambda: progress.advance(next(shares))


def trained(
    config: StudyConfig, spec: ModelSpec, weights: Mapping[str, Tensor], device: torch.device, *, compiled: bool = False
) -> Denoiser:
    """A denoiser from a variant's model with these weights, at the study's sampling precision.

    Raises RuntimeError when names or shapes of the weights do not fit the model.
    """
    precision = config.sampling.precision
    matmul_precision(precision, device)
    model = DiT(spec, config.dataset.inputs, attention=config.fit_for(spec).attention)
    model.load_state_dict(dict(weights), strict=True)
    model.to(device).eval().requires_grad_(False)
    if compiled:
        model.compile_layers()

    def denoise(x_NCHW: Tensor, t_N: Tensor, y_N: Tensor) -> Tensor:
        with autocast(precision, device):
            output: Tensor = model(x_NCHW, t_N, y_N)
        # The reverse step is computed in float32, whatever the model's precision.
        return output.float()

    return denoise


def untrained(x_NCHW: Tensor, t_N: Tensor, y_N: Tensor) -> Tensor:  # noqa: ARG001
    """The output [N, 2C, H, W] of a DiT before its first training step.

    It is zero, because the last layer is initialised with zeros (DiT, section 4).
    """
    return torch.cat([torch.zeros_like(x_NCHW)] * 2, dim=1)
