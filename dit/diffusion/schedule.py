"""The noise schedule, its respacing, and the coefficients of losses and samplers.

Coefficients are computed in float64 with numpy; torch code reads float32 tables, made once per device. Sources: Ho et
al. 2020 (DDPM), Nichol & Dhariwal 2021 (learned variance, respacing), Song et al. 2021 (DDIM).

    chain = linear_schedule().respaced(250)
    chain.alphas_cumprod[-1], chain.timestep_map[-1]  # 4.04e-05, 999
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit.errors import ConfigError
from dit.study.config import DIFFUSION_STEPS

Float64 = NDArray[np.float64]

# DDPM, section 4.
FIRST_BETA, LAST_BETA = 1e-4, 2e-2


@dataclass(frozen=True, eq=False)
class Schedule:
    """A chain of K diffusion steps, all or some of the training chain's; index 0 is the least noisy.

    The papers count steps from 1, so index k is their t = k + 1. All coefficients are float64 [K].
    """

    betas: Float64
    """Variance of the noise that step k adds (DDPM eq. 2)."""
    timestep_map: NDArray[np.int64]
    """int64 [K]: step k's number in the training chain, which is the timestep input of the model."""
    _tables: dict[tuple[tuple[str, ...], torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> Float64:
        """The factor of x_0's variance in x_t (alpha-bar, DDPM eq. 4)."""
        return np.cumprod(1 - self.betas, dtype=np.float64)

    @cached_property
    def alphas_cumprod_prev(self) -> Float64:
        """alpha-bar one step earlier; 1 at the first step."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def sqrt_alphas_cumprod(self) -> Float64:
        """x_0's factor in x_t (DDPM eq. 4)."""
        return np.sqrt(self.alphas_cumprod)

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Float64:
        """The noise's factor in x_t (DDPM eq. 4)."""
        return np.sqrt(1 - self.alphas_cumprod)

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> Float64:
        """x_t's factor in the predicted x_0 (DDPM eq. 15)."""
        return np.sqrt(1 / self.alphas_cumprod)

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> Float64:
        """Minus the noise's factor in the predicted x_0 (DDPM eq. 15)."""
        return np.sqrt(1 / self.alphas_cumprod - 1)

    @cached_property
    def posterior_variance(self) -> Float64:
        """Variance of q(x_{t-1} | x_t, x_0) (DDPM eq. 7); 0 at the first step."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Float64:
        """Logarithm of the posterior variance; the first step, where it is minus infinity, takes the second's value."""
        if len(self) == 1:
            return self.log_betas
        clipped: Float64 = np.log(np.append(self.posterior_variance[1], self.posterior_variance[1:]))
        return clipped

    @cached_property
    def log_betas(self) -> Float64:
        """Upper end of the learned log-variance; the posterior's is the lower end (Nichol & Dhariwal, eq. 15)."""
        return np.log(self.betas)

    @cached_property
    def posterior_mean_coef1(self) -> Float64:
        """x_0's factor in the mean of q(x_{t-1} | x_t, x_0) (DDPM eq. 7)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Float64:
        """x_t's factor in the mean of q(x_{t-1} | x_t, x_0) (DDPM eq. 7)."""
        return (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)

    @cached_property
    def reverse_mean_coef1(self) -> Float64:
        """x_t's factor in the mean of the model's reverse step: DDPM eq. 11, as eq. 15 inserted into eq. 7."""
        return self.posterior_mean_coef1 * self.sqrt_recip_alphas_cumprod + self.posterior_mean_coef2

    @cached_property
    def reverse_mean_coef2(self) -> Float64:
        """Minus the predicted noise's factor in the mean of the model's reverse step (DDPM eq. 11)."""
        return self.posterior_mean_coef1 * self.sqrt_recipm1_alphas_cumprod

    @cached_property
    def posterior_precision_coef(self) -> Float64:
        """x_0's factor in the posterior mean, divided by the posterior's standard deviation; the KL term squares it."""
        return self.posterior_mean_coef1 / np.sqrt(np.exp(self.posterior_log_variance_clipped))

    def table(self, names: tuple[str, ...], device: torch.device) -> Tensor:
        """Return the named coefficients as one float32 tensor [len(names), K] on the device, made once."""
        table = self._tables.get((names, device))
        if table is None:
            rows = np.stack([getattr(self, name) for name in names])
            # Autograd refuses tensors that were created in inference mode, and this table outlives the caller's mode.
            with torch.inference_mode(False):
                table = self._tables[names, device] = torch.from_numpy(rows).float().to(device)
        return table

    def gather(self, names: tuple[str, ...], t_N: Tensor) -> Iterator[Tensor]:
        """Return each named coefficient at the steps t_N (int64) as [N, 1, 1, 1]."""
        return iter(self.table(names, t_N.device)[:, t_N, None, None, None].unbind(0))

    def respaced(self, steps: int, *, ddim: bool = False) -> Schedule:
        """Return a chain of `steps` of these steps, with the same q(x_t | x_0) at every kept step.

        Ancestral sampling keeps the first step, the last, and evenly spaced steps between. DDIM keeps every n-th step.
        Raises ConfigError when `steps` is out of range, or when no n keeps that many.
        """
        if not 1 <= steps <= len(self):
            raise ConfigError(f"sampling.steps={steps}: must be 1 to {len(self)}, the steps of the training chain")
        kept = _every_nth(len(self), steps) if ddim else _evenly(len(self), steps)
        # beta_i = 1 - bar_i / bar_{i-1} keeps alpha-bar where it was (Nichol & Dhariwal, eq. 19).
        bar = self.alphas_cumprod[kept]
        return Schedule(betas=1 - bar / np.append(1.0, bar[:-1]), timestep_map=self.timestep_map[kept])


def linear_schedule(steps: int = DIFFUSION_STEPS) -> Schedule:
    """Return the training chain of the paper: betas linear from 1e-4 to 2e-2 (DDPM, section 4)."""
    return Schedule(np.linspace(FIRST_BETA, LAST_BETA, steps), np.arange(steps))


SCHEDULES: dict[str, Callable[[], Schedule]] = {"linear": linear_schedule}
"""Value of `train.schedule` -> function that makes the training chain."""


def _evenly(length: int, steps: int) -> NDArray[np.int64]:
    stride = (length - 1) / (steps - 1) if steps > 1 else 1.0
    # Positions are a running sum, not i * stride: published samplers sum, and the two can round a tie differently.
    return np.array([round(position) for position in accumulate(repeat(stride, steps - 1), initial=0.0)])


def _every_nth(length: int, steps: int) -> NDArray[np.int64]:
    stride = -(-length // steps)
    kept = np.arange(0, length, stride)
    if len(kept) != steps:
        more = len(range(0, length, stride - 1))
        raise ConfigError(
            f"sampling.steps={steps}: DDIM keeps every n-th of {length} steps, and no n gives {steps};"
            f" nearest are {len(kept)} and {more}"
        )
    return kept
