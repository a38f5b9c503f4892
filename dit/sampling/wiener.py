"""The dataset's Wiener denoiser through the study's own sampler, as the health check `sampler` judges it."""

from __future__ import annotations

import numpy as np
import torch

from dit.diffusion.schedule import SCHEDULES
from dit.health.bounds import Bounds
from dit.health.sampler import SAMPLES, SamplerView, WienerDenoiser
from dit.sampling.generate import Generator
from dit.study.config import StudyConfig


def draw_wiener(config: StudyConfig, bounds: Bounds, device: torch.device) -> SamplerView:
    """Draw the study's first samples from the denoiser, with their labels and with none, from the same noise."""
    schedule = SCHEDULES[config.train.schedule]()
    denoise = WienerDenoiser(bounds, schedule, device)
    generator = Generator(config, denoise, None, device, SAMPLES)
    count = min(SAMPLES, len(generator.labels))
    indices = np.arange(count)
    labels = generator.labels[:count].copy()
    labelled = generator.latents(indices)
    generator.labels = np.full_like(generator.labels, config.dataset.classes)
    unlabelled = generator.latents(indices)
    return SamplerView(
        bounds=bounds,
        sampling=config.sampling,
        schedule=schedule,
        labels_N=labels,
        labelled_NCHW=labelled.cpu().numpy(),
        unlabelled_NCHW=unlabelled.cpu().numpy(),
    )
