"""The paper's training loss: noise prediction (mse) plus the variational bound (vb) that trains the variance alone.

Nichol & Dhariwal 2021, section 3.1, unscaled, in float32 whatever precision the model ran in.
Shapes: N batch, C channels, H and W sides of the latent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dit.diffusion.schedule import Schedule

_DIFFUSE = ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
_BOUND = (
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_precision_coef",
    "posterior_log_variance_clipped",
    "log_betas",
)
# Half the distance between two of the 256 values that 8-bit data takes in [-1, 1], and where its end bins begin.
_HALF_BIN = 1 / 255
_EDGE = 0.999
_SMALLEST_PROBABILITY = 1e-12


def diffuse(schedule: Schedule, x0_NCHW: Tensor, t_N: Tensor, noise_NCHW: Tensor) -> Tensor:
    """x_t [N, C, H, W]: the data after step t (DDPM eq. 4). `t_N` int64 in [0, len(schedule))."""
    signal, scale = schedule.gather(_DIFFUSE, t_N)
    return signal * x0_NCHW + scale * noise_NCHW


def training_losses(
    schedule: Schedule, output_N2CHW: Tensor, x0_NCHW: Tensor, x_t_NCHW: Tensor, t_N: Tensor, noise_NCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """Per-sample (mse_N, vb_N), float32; the training loss is the mean of their sum.

    `output_N2CHW` is the model's answer to x_t: predicted noise, then the variance's position v in its range, where -1
    is the posterior's variance and 1 is beta. The bound, in bits, does not reach the noise prediction.
    """
    epsilon, v = output_N2CHW.float().chunk(2, dim=1)
    mse_N = (noise_NCHW - epsilon).square().mean(dim=(1, 2, 3))

    recip, recipm1, precision, low, high = schedule.gather(_BOUND, t_N)
    x0_error = x0_NCHW - recip * x_t_NCHW + recipm1 * epsilon.detach()
    raised = (0.5 * (v + 1)) * (high - low)
    kl = _gaussian_kl(precision * x0_error, raised)
    # Step 0 has no posterior: the model's Gaussian is scored against the data itself, around its predicted x_0.
    nll = _discretised_nll(x0_NCHW, x0_error, 0.5 * (low + raised))
    vb_N = torch.where(t_N.view(-1, 1, 1, 1) == 0, nll, kl).mean(dim=(1, 2, 3)) / math.log(2)
    return mse_N, vb_N


def _gaussian_kl(standardised_error: Tensor, raised: Tensor) -> Tensor:
    """KL(posterior || model) per value, in nats.

    `standardised_error` is the distance of the means in posterior standard deviations, `raised` the model's
    log-variance minus the posterior's. Written around expm1, as the two variances nearly agree at most steps.
    """
    shrink = torch.expm1(-raised)
    return 0.5 * (raised + shrink + (1 + shrink) * standardised_error.square())


def _discretised_nll(x0: Tensor, x0_error: Tensor, log_scale: Tensor) -> Tensor:
    """Minus the log of the probability a Gaussian gives to x0's bin, in nats; 256 bins in [-1, 1] (DDPM eq. 13)."""
    inverse = torch.exp(-log_scale)
    below_upper = _normal_cdf(inverse * (x0_error + _HALF_BIN))
    below_lower = _normal_cdf(inverse * (x0_error - _HALF_BIN))
    probability = torch.where(
        x0 < -_EDGE, below_upper, torch.where(x0 > _EDGE, 1 - below_lower, below_upper - below_lower)
    )
    return -probability.clamp(min=_SMALLEST_PROBABILITY).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """Standard normal distribution function, in the tanh approximation that published loss values were made with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))
