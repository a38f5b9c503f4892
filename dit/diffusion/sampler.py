"""Reverse diffusion: ancestral DDPM with learned variance, or DDIM; both with classifier-free guidance.

The predicted x_0 is not clipped, because latents are not bounded.
Shapes: N batch, C channels, H and W sides of the latent.

    latents = sample(model, linear_schedule(), noise, labels, SamplingConfig(steps=250), null_label=1000)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dit.diffusion.schedule import Schedule
from dit.study.config import SamplingConfig

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_NCHW, t_N in training steps, y_N) -> [N, 2C, H, W]: predicted noise, then the variance's position v."""

NoiseSource = Callable[[int], Tensor]
"""0 -> the initial noise x_T [N, C, H, W]; i -> the noise of the i-th reverse step, counted from 1."""

NO_GUIDANCE = 1.0
# The published FIDs guide only these channels of the latent (Peebles & Xie 2023, appendix A).
_FIRST_CHANNELS = 3
_REVERSE = ("reverse_mean_coef1", "reverse_mean_coef2", "posterior_log_variance_clipped", "log_betas")


@torch.inference_mode()
def sample(
    denoise: Denoiser,
    schedule: Schedule,
    noise: NoiseSource,
    labels_N: Tensor,
    config: SamplingConfig,
    null_label: int,
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """Return sampled latents x_0 [N, C, H, W], float32, on the device of the noise.

    `schedule` is the training chain, respaced to `config.steps` or not. `labels_N` are int64; `null_label` stands for
    no label. `on_step` is called after each reverse step.
    Raises ConfigError when the chain cannot be respaced to `config.steps`.
    """
    chain = schedule.respaced(config.steps, ddim=config.sampler == "ddim")
    x_NCHW = noise(0).float()
    predict = _guided(denoise, labels_N.to(x_NCHW.device), config, null_label)
    advance = _ddim(chain, config.eta) if config.sampler == "ddim" else _ancestral(chain)
    # The model knows the training chain only: on a respaced chain, index k stands for step timestep_map[k].
    timesteps = torch.from_numpy(chain.timestep_map).to(x_NCHW.device)
    last = len(chain) - 1
    for i, k in enumerate(range(last, -1, -1), start=1):
        output_N2CHW = predict(x_NCHW, timesteps[k])
        x_NCHW, scale = advance(output_N2CHW, x_NCHW, k)
        if scale is not None:
            x_NCHW = torch.addcmul(x_NCHW, scale, noise(i))
        if on_step is not None:
            on_step()
    return x_NCHW


def guide(output_2N: Tensor, scale: float, channels: int) -> Tensor:
    """Return the guided output [N, 2C, H, W] (classifier-free guidance, Ho & Salimans 2022).

    `output_2N` [2N, 2C, H, W] is the conditional half, then the unconditional half. The first `channels` of the noise
    are guided. The other channels and the variance are those of the conditional half.
    """
    conditional, unconditional = output_2N.chunk(2)
    # unconditional + s (conditional - unconditional): Peebles & Xie, section 3.1; s = 1 + w of Ho & Salimans, eq. 6.
    guided = torch.lerp(unconditional[:, :channels], conditional[:, :channels], scale)
    return torch.cat([guided, conditional[:, channels:]], dim=1)


def _guided(
    denoise: Denoiser, labels_N: Tensor, config: SamplingConfig, null_label: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return (x_NCHW, scalar training step) -> float32 output [N, 2C, H, W], guided by `config.cfg_scale`."""
    if config.cfg_scale == NO_GUIDANCE:
        # The unconditional half would cancel, so it is not computed.
        return lambda x, t: denoise(x, t.expand(len(x)), labels_N).float()
    labels_2N = torch.cat([labels_N, torch.full_like(labels_N, null_label)])

    def predict(x_NCHW: Tensor, t: Tensor) -> Tensor:
        output_2N = denoise(torch.cat([x_NCHW, x_NCHW]), t.expand(len(labels_2N)), labels_2N).float()
        channels = x_NCHW.shape[1]
        guided = channels if config.guided_channels == "all" else min(_FIRST_CHANNELS, channels)
        return guide(output_2N, config.cfg_scale, guided)

    return predict


_Advance = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor | None]]
"""(output, x_t, index in the chain) -> mean of x_{t-1}, and the factor of its noise (None: no noise is added)."""


def _ancestral(chain: Schedule) -> _Advance:
    """DDPM's reverse step (Ho et al. 2020, eq. 11) with the learned variance of Nichol & Dhariwal 2021, eq. 15."""
    coefficients = np.stack([getattr(chain, name) for name in _REVERSE], axis=1).tolist()

    def advance(output_N2CHW: Tensor, x_t_NCHW: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        from_x, from_noise, low, high = coefficients[k]
        epsilon, v = output_N2CHW.chunk(2, dim=1)
        mean = from_x * x_t_NCHW - from_noise * epsilon
        # Interpolated in log space; v = -1 is the posterior variance, v = 1 is beta.
        log_variance = low + (0.5 * (v + 1)) * (high - low)
        # The last step adds no noise: x_0 is its mean (DDPM, algorithm 2).
        return mean, torch.exp(0.5 * log_variance) if k > 0 else None

    return advance


def _ddim(chain: Schedule, eta: float) -> _Advance:
    """Song et al. 2021, eq. 12, with sigma of eq. 16: eta 0 is deterministic, eta 1 has DDPM's posterior variance."""
    bar, previous = chain.alphas_cumprod, chain.alphas_cumprod_prev
    sigma = eta * np.sqrt((1 - previous) / (1 - bar)) * np.sqrt(1 - bar / previous)
    # Eq. 12 is sqrt(previous) x_0 + sqrt(1 - previous - sigma^2) epsilon with the predicted x_0 of DDPM eq. 15. Written
    # in x_t and epsilon, no step computes x_0.
    signal = np.sqrt(previous / bar)
    direction = np.sqrt(1 - previous - sigma**2) - signal * np.sqrt(1 - bar)
    coefficients = np.stack([signal, direction, sigma], axis=1).tolist()

    def advance(output_N2CHW: Tensor, x_t_NCHW: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        signal_k, direction_k, sigma_k = coefficients[k]
        epsilon = output_N2CHW.chunk(2, dim=1)[0]
        return signal_k * x_t_NCHW + direction_k * epsilon, x_t_NCHW.new_tensor(sigma_k) if sigma_k else None

    return advance
