"""What a model predicts from noise alone, as check 8 (`pure-noise`) judges it."""

from __future__ import annotations

import numpy as np
import torch

from dit.diffusion.sampler import Denoiser
from dit.health.learning import NoiseView
from dit.study.config import DIFFUSION_STEPS
from dit.study.variants import InputSpec, ModelSpec

_SAMPLES = 16


@torch.no_grad()
def look_at_noise(
    denoise: Denoiser, spec: ModelSpec, inputs: InputSpec, device: torch.device, *, step: int, tau: float
) -> NoiseView:
    """Give a model noise at the last step of the training chain. The noise is a function of `step`."""
    random = np.random.Generator(np.random.SFC64(step))
    shape = (_SAMPLES, inputs.channels, inputs.size, inputs.size)
    noise = torch.from_numpy(random.standard_normal(shape, dtype=np.float32)).to(device)
    t = torch.full((_SAMPLES,), DIFFUSION_STEPS - 1, device=device)
    labels = torch.arange(_SAMPLES, device=device) % inputs.classes
    predicted = denoise(noise, t, labels).float().chunk(2, dim=1)[0]
    both = torch.stack([predicted.flatten(), noise.flatten()]).double()
    correlation = float(torch.corrcoef(both)[0, 1]) if float(predicted.std()) > 0 else 0.0
    share = min(1.0, spec.hidden / (spec.patch**2 * inputs.channels))
    return NoiseView(step, correlation, float(predicted.std()), share, tau)
