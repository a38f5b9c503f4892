"""The noise schedule, its respacing, and the coefficients that losses and samplers read from it.

Everything is computed once in float64 with numpy; torch code takes float32 tables from `Schedule.table`, which are made
once per device. Sources: Ho et al. 2020 (DDPM), Nichol & Dhariwal 2021 (learned range, respacing), Song et al. 2021
(DDIM).
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

FIRST_BETA, LAST_BETA = 1e-4, 2e-2


@dataclass(frozen=True, eq=False)
class Schedule:
    """A chain of K diffusion steps, a subset of the training chain's. Index 0 is the least noisy one.

    All coefficients are float64 arrays of shape [K].
    """

    betas: Float64
    """Variance that step k adds."""
    timestep_map: NDArray[np.int64]
    """Step k's number in the training chain: what the model must be told."""
    _tables: dict[tuple[tuple[str, ...], torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> Float64:
        """Share of the signal's variance that is left at step k (DDPM eq. 4)."""
        return np.cumprod(1 - self.betas, dtype=np.float64)

    @cached_property
    def alphas_cumprod_prev(self) -> Float64:
        """The same one step earlier; 1 before the first."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def sqrt_alphas_cumprod(self) -> Float64:
        """Signal's factor in x_t."""
        return np.sqrt(self.alphas_cumprod)

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Float64:
        """Noise's factor in x_t."""
        return np.sqrt(1 - self.alphas_cumprod)

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> Float64:
        """x_t's factor in the predicted x_0."""
        return np.sqrt(1 / self.alphas_cumprod)

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> Float64:
        """Minus the noise's factor in the predicted x_0."""
        return np.sqrt(1 / self.alphas_cumprod - 1)

    @cached_property
    def posterior_variance(self) -> Float64:
        """Variance of q(x_{t-1} | x_t, x_0) (DDPM eq. 7); 0 at the first step."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Float64:
        """Its logarithm, with the second step's value at the first, whose own is minus infinity."""
        if len(self) == 1:
            return self.log_betas
        clipped: Float64 = np.log(np.append(self.posterior_variance[1], self.posterior_variance[1:]))
        return clipped

    @cached_property
    def log_betas(self) -> Float64:
        """Upper end of the learned variance's range; the clipped posterior is the lower (Nichol & Dhariwal, eq. 15)."""
        return np.log(self.betas)

    @cached_property
    def posterior_mean_coef1(self) -> Float64:
        """x_0's factor in the mean of q(x_{t-1} | x_t, x_0) (DDPM eq. 7)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Float64:
        """x_t's factor in the same mean."""
        return (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)

    @cached_property
    def reverse_mean_coef1(self) -> Float64:
        """x_t's factor in the mean of the model's reverse step, predicted x_0 inserted."""
        return self.posterior_mean_coef1 * self.sqrt_recip_alphas_cumprod + self.posterior_mean_coef2

    @cached_property
    def reverse_mean_coef2(self) -> Float64:
        """Minus the predicted noise's factor in the same mean."""
        return self.posterior_mean_coef1 * self.sqrt_recipm1_alphas_cumprod

    @cached_property
    def posterior_precision_coef(self) -> Float64:
        """x_0's factor in the posterior's mean, in units of its standard deviation: what the KL term squares."""
        return self.posterior_mean_coef1 / np.sqrt(np.exp(self.posterior_log_variance_clipped))

    def table(self, names: tuple[str, ...], device: torch.device) -> Tensor:
        """The named coefficients as one float32 tensor [len(names), K] on the device, made once."""
        found = self._tables.get((names, device))
        if found is None:
            rows = np.stack([getattr(self, name) for name in names])
            # A tensor born in inference mode could not take part in a later backward pass.
            with torch.inference_mode(False):
                found = self._tables[names, device] = torch.from_numpy(rows).float().to(device)
        return found

    def gather(self, names: tuple[str, ...], t_N: Tensor) -> Iterator[Tensor]:
        """Each named coefficient at the steps t_N (int64), shaped [N, 1, 1, 1]."""
        return iter(self.table(names, t_N.device)[:, t_N, None, None, None].unbind(0))

    def respaced(self, steps: int, *, ddim: bool = False) -> Schedule:
        """The chain of `steps` of these steps that has the same marginals at the steps it keeps.

        Ancestral sampling keeps the first and the last step and spaces evenly between, rounding; DDIM keeps every n-th.
        Raises ConfigError where that is impossible.
        """
        if not 1 <= steps <= len(self):
            raise ConfigError(
                f"sampling.steps={steps}: must be 1 to {len(self)}, the length of the chain it is taken from"
            )
        kept = _every_nth(len(self), steps) if ddim else _evenly(len(self), steps)
        bar = self.alphas_cumprod[kept]
        return Schedule(betas=1 - bar / np.append(1.0, bar[:-1]), timestep_map=self.timestep_map[kept])


def linear_schedule(steps: int = DIFFUSION_STEPS) -> Schedule:
    """The paper's training chain: betas from 1e-4 to 2e-2, linear."""
    return Schedule(np.linspace(FIRST_BETA, LAST_BETA, steps), np.arange(steps))


SCHEDULES: dict[str, Callable[[], Schedule]] = {"linear": linear_schedule}
"""`train.schedule` -> the training chain."""


def _evenly(length: int, steps: int) -> NDArray[np.int64]:
    stride = (length - 1) / (steps - 1) if steps > 1 else 1.0
    # Summed up rather than multiplied out: published samplers do, and a tie can round the other way.
    return np.array([round(position) for position in accumulate(repeat(stride, steps - 1), initial=0.0)])


def _every_nth(length: int, steps: int) -> NDArray[np.int64]:
    stride = -(-length // steps)
    kept = np.arange(0, length, stride)
    if len(kept) != steps:
        more = len(range(0, length, stride - 1))
        raise ConfigError(
            f"sampling.steps={steps}: DDIM keeps every n-th of {length} steps, which never leaves {steps};"
            f" nearest are {len(kept)} and {more}"
        )
    return kept
