"""The hybrid training loss of Nichol & Dhariwal 2021, section 3.1 (eq. 16), in float32 at any model precision.

The noise prediction is trained by its mean squared error (mse), the variance by the variational bound (vb) alone.
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
# 8-bit data has 256 values in [-1, 1], 2 / 255 apart. The bins of the two end values reach to infinity (DDPM eq. 13).
_HALF_BIN = 1 / 255
_EDGE = 0.999
_SMALLEST_PROBABILITY = 1e-12


def diffuse(schedule: Schedule, x0_NCHW: Tensor, t_N: Tensor, noise_NCHW: Tensor) -> Tensor:
    """Return x_t [N, C, H, W], drawn from q(x_t | x_0) (DDPM eq. 4). `t_N` is int64 in [0, len(schedule))."""
    signal, scale = schedule.gather(_DIFFUSE, t_N)
    return signal * x0_NCHW + scale * noise_NCHW


def training_losses(
    schedule: Schedule, output_N2CHW: Tensor, x0_NCHW: Tensor, x_t_NCHW: Tensor, t_N: Tensor, noise_NCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """Return per-sample (mse_N, vb_N), float32; the training loss is the mean of their sum.

    `output_N2CHW` is the model's output at x_t: predicted noise, then v, the variance's position between the posterior
    variance (-1) and beta (1). `vb_N` is in bits.
    """
    epsilon, v = output_N2CHW.float().chunk(2, dim=1)
    # L_simple: DDPM eq. 14.
    mse_N = (noise_NCHW - epsilon).square().mean(dim=(1, 2, 3))

    # L_vlb sums 1000 terms and eq. 16 weighs it by 0.001. Here t is uniform, so the mean over samples needs no factor.
    recip, recipm1, precision, low, high = schedule.gather(_BOUND, t_N)
    # Predicted x_0: DDPM eq. 15. `detach` stops the bound's gradient at the mean (Nichol & Dhariwal, section 3.1).
    x0_error = x0_NCHW - recip * x_t_NCHW + recipm1 * epsilon.detach()
    # Log-variance above the posterior's: Nichol & Dhariwal, eq. 15, with (v + 1) / 2 for the paper's v.
    raised = (0.5 * (v + 1)) * (high - low)
    # The means of posterior and model differ by the x_0 coefficient times the error of x_0 (DDPM eq. 7).
    kl = _gaussian_kl(precision * x0_error, raised)
    # Step 0 has no posterior. Its term is the likelihood of the data under a Gaussian around the predicted x_0.
    nll = _discretised_nll(x0_NCHW, x0_error, 0.5 * (low + raised))
    vb_N = torch.where(t_N.view(-1, 1, 1, 1) == 0, nll, kl).mean(dim=(1, 2, 3)) / math.log(2)
    return mse_N, vb_N


def _gaussian_kl(standardised_error: Tensor, raised: Tensor) -> Tensor:
    """Return KL(posterior || model) per value, in nats (L_{t-1} of DDPM eq. 5).

    `standardised_error` is the distance of the means in posterior standard deviations, `raised` the model's
    log-variance minus the posterior's.
    """
    # 0.5 (raised - 1 + exp(-raised) (1 + error^2)). The two variances nearly agree at most steps, where 1 and
    # exp(-raised) would cancel; expm1 keeps the digits.
    shrink = torch.expm1(-raised)
    return 0.5 * (raised + shrink + (1 + shrink) * standardised_error.square())


def _discretised_nll(x0: Tensor, x0_error: Tensor, log_scale: Tensor) -> Tensor:
    """Return minus the log-probability of x0's bin under a Gaussian, in nats (DDPM eq. 13)."""
    inverse = torch.exp(-log_scale)
    below_upper = _normal_cdf(inverse * (x0_error + _HALF_BIN))
    below_lower = _normal_cdf(inverse * (x0_error - _HALF_BIN))
    probability = torch.where(
        x0 < -_EDGE, below_upper, torch.where(x0 > _EDGE, 1 - below_lower, below_upper - below_lower)
    )
    return -probability.clamp(min=_SMALLEST_PROBABILITY).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """Return the standard normal distribution function in the tanh approximation that published losses use."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))
