"""The schedule and its respacing: properties that hold for any number of steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit.diffusion.losses import diffuse
from dit.diffusion.schedule import Schedule, linear_schedule
from dit.errors import ConfigError
from dit.study.config import SamplingConfig

CHAIN = linear_schedule()
COEFFICIENTS = [name for name in vars(Schedule) if isinstance(getattr(CHAIN, name), np.ndarray)]


@given(st.integers(1, 1000))
def test_respacing_keeps_the_marginals_of_the_steps_it_keeps(steps: int) -> None:
    chain = CHAIN.respaced(steps)
    assert len(chain) == steps
    assert chain.timestep_map[0] == 0
    assert steps == 1 or chain.timestep_map[-1] == 999
    assert np.all(np.diff(chain.timestep_map) > 0)
    np.testing.assert_allclose(chain.alphas_cumprod, CHAIN.alphas_cumprod[chain.timestep_map], rtol=1e-9)
    assert np.all((chain.betas > 0) & (chain.betas < 1))
    assert all(np.isfinite(getattr(chain, name)).all() for name in COEFFICIENTS)


@given(st.integers(1, 1000))
def test_respacing_a_chain_to_its_length_changes_nothing(steps: int) -> None:
    chain = CHAIN.respaced(steps)
    assert chain.respaced(steps).timestep_map.tolist() == chain.timestep_map.tolist()
    assert chain.respaced(steps, ddim=True).timestep_map.tolist() == chain.timestep_map.tolist()


@given(st.integers(1, 1000))
def test_ddim_keeps_every_nth_step_or_names_the_nearest_counts(steps: int) -> None:
    """The study file refuses the same counts."""
    possible = {len(range(0, 1000, stride)) for stride in range(1, 1001)}
    if steps in possible:
        kept = CHAIN.respaced(steps, ddim=True).timestep_map
        assert len(kept) == steps
        assert len(set(np.diff(kept))) <= 1
        SamplingConfig(sampler="ddim", steps=steps)
    else:
        fewer, more = (f(n for n in possible if (n < steps) == below) for f, below in ((max, True), (min, False)))
        with pytest.raises(ConfigError, match=f"nearest are {fewer} and {more}"):
            CHAIN.respaced(steps, ddim=True)
        with pytest.raises(ValueError, match=f"nearest are {fewer} and {more}"):
            SamplingConfig(sampler="ddim", steps=steps)
    SamplingConfig(sampler="ddpm", steps=steps)


@pytest.mark.parametrize("ddim", [False, True])
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_step_count_out_of_range_is_refused(steps: int, ddim: bool) -> None:
    with pytest.raises(ConfigError, match=f"sampling.steps={steps}: must be 1 to 1000"):
        CHAIN.respaced(steps, ddim=ddim)


def test_posterior_follows_from_bayes_rule() -> None:
    """q(x_{t-1} | x_t, x_0) from the product of prior and likelihood, without DDPM's closed form."""
    before, beta = CHAIN.alphas_cumprod_prev[1:], CHAIN.betas[1:]
    prior_variance, gain = 1 - before, np.sqrt(1 - beta)
    variance = 1 / (1 / prior_variance + gain**2 / beta)
    np.testing.assert_allclose(CHAIN.posterior_variance[1:], variance, rtol=1e-9)
    np.testing.assert_allclose(CHAIN.posterior_mean_coef1[1:], variance * np.sqrt(before) / prior_variance, rtol=1e-9)
    np.testing.assert_allclose(CHAIN.posterior_mean_coef2[1:], variance * gain / beta, rtol=1e-9)


def test_noised_data_keeps_unit_variance() -> None:
    draw = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(1000, 1, 16, 16, generator=draw) for _ in range(2))
    spread = diffuse(CHAIN, x0, torch.arange(1000), noise).std(dim=(1, 2, 3))
    torch.testing.assert_close(spread, torch.ones(1000), rtol=0, atol=0.2)


def test_tables_made_in_inference_mode_work_in_training() -> None:
    chain = linear_schedule()
    with torch.inference_mode():
        diffuse(chain, torch.zeros(1, 1, 2, 2), torch.tensor([3]), torch.zeros(1, 1, 2, 2))
    x0 = torch.zeros(1, 1, 2, 2, requires_grad=True)
    diffuse(chain, x0, torch.tensor([3]), torch.zeros(1, 1, 2, 2)).sum().backward()
    assert x0.grad is not None
    assert x0.grad[0, 0, 0, 0].item() == pytest.approx(chain.sqrt_alphas_cumprod[3])
