"""The training loss: the value of each term, and which outputs its gradient reaches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dit.diffusion.losses import diffuse, training_losses
from dit.diffusion.schedule import linear_schedule

CHAIN = linear_schedule()
SHAPE = (2, 4, 4)


def losses(t: Tensor, output: Tensor, x0: Tensor | None = None, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    x0 = torch.zeros(len(t), *SHAPE) if x0 is None else x0
    noise = torch.zeros(len(t), *SHAPE) if noise is None else noise
    return training_losses(CHAIN, output, x0, diffuse(CHAIN, x0, t, noise), t, noise)


def answer(noise: Tensor, v: float) -> Tensor:
    return torch.cat([noise, torch.full_like(noise, v)], dim=1)


@given(st.integers(1, 999), st.integers(0, 2**31))
def test_loss_of_the_true_noise_with_the_posterior_variance_is_zero(t: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(1, *SHAPE, generator=draw), torch.randn(1, *SHAPE, generator=draw)
    mse, vb = losses(torch.tensor([t]), answer(noise, -1.0), x0, noise)
    assert mse.item() == 0
    assert vb.item() == pytest.approx(0, abs=1e-6)


@given(st.integers(1, 999), st.floats(-1, 1), st.floats(-3, 3))
def test_bound_is_the_kl_divergence_of_two_gaussians_in_bits(t: int, v: float, error: float) -> None:
    """Against torch.distributions in float64, for a noise prediction that is off by `error` everywhere."""
    noise = torch.zeros(1, *SHAPE)
    mse, vb = losses(torch.tensor([t]), answer(noise + error, v))
    low, high = CHAIN.posterior_log_variance_clipped[t], CHAIN.log_betas[t]
    log_variance = low + (v + 1) / 2 * (high - low)
    shift = CHAIN.posterior_mean_coef1[t] * CHAIN.sqrt_recipm1_alphas_cumprod[t] * error
    posterior, model = (
        torch.distributions.Normal(torch.tensor(mean).double(), torch.tensor(variance).double().div(2).exp())
        for mean, variance in ((0.0, low), (shift, log_variance))
    )
    expected = torch.distributions.kl_divergence(posterior, model).item() / math.log(2)
    assert mse.item() == pytest.approx(error**2, rel=1e-5, abs=1e-12)
    assert vb.item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_decoder_probabilities_of_the_first_step_sum_to_one() -> None:
    """Summed over every value a pixel can take, the decoder's probabilities are 1."""
    values = torch.linspace(-1, 1, 256)
    x0 = values.view(256, 1, 1, 1)
    # The same Gaussian for each value: x_t, and so the predicted data, is 0.1 everywhere, its noise predicted as 0.
    t = torch.zeros(256, dtype=torch.int64)
    x_t = torch.full_like(x0, 0.1)
    _, bits = training_losses(CHAIN, torch.zeros(256, 2, 1, 1), x0, x_t, t, torch.zeros_like(x0))
    assert torch.exp2(-bits).sum().item() == pytest.approx(1, abs=1e-3)
    assert values[bits.argmin()].item() == pytest.approx(0.1, abs=1 / 255)


@pytest.mark.parametrize("t", [0, 1, 500])
def test_gradient_of_the_bound_reaches_only_the_variance(t: int) -> None:
    draw = torch.Generator().manual_seed(0)
    x0, drawn, v = (torch.rand(1, *SHAPE, generator=draw) for _ in range(3))
    output = torch.cat([drawn + 0.3, v], dim=1).requires_grad_()
    mse, vb = losses(torch.tensor([t]), output, x0, drawn)
    (from_vb,) = torch.autograd.grad(vb.sum(), output, retain_graph=True)
    (from_mse,) = torch.autograd.grad(mse.sum(), output)
    noise, variance = slice(0, SHAPE[0]), slice(SHAPE[0], None)
    assert not from_vb[:, noise].any()
    assert from_vb[:, variance].all()
    assert from_mse[:, noise].all()
    assert not from_mse[:, variance].any()


def test_step_losses_of_zero_initialised_model() -> None:
    """Step 0 of any training from unit-variance data: mse 1, and a bound that is small on average."""
    draw = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4000, 4, 4, 4, generator=draw) for _ in range(2))
    t = torch.randint(1000, (4000,), generator=draw)
    mse, vb = training_losses(CHAIN, torch.zeros(4000, 8, 4, 4), x0, diffuse(CHAIN, x0, t, noise), t, noise)
    assert mse.mean().item() == pytest.approx(1, abs=0.02)
    assert vb.mean().item() == pytest.approx(0.017, abs=0.008)


def test_losses_of_a_bf16_output_are_float32_per_sample() -> None:
    t = torch.tensor([0, 7, 999])
    mse, vb = losses(t, torch.randn(3, 4, 4, 4).bfloat16(), noise=torch.randn(3, *SHAPE))
    assert mse.shape == vb.shape == (3,)
    assert mse.dtype == vb.dtype == torch.float32


@given(st.integers(0, 999), st.floats(-30, 30))
def test_extreme_variance_leaves_loss_and_gradient_finite(t: int, v: float) -> None:
    noise = torch.randn(1, *SHAPE)
    output = answer(torch.zeros_like(noise), v).requires_grad_()
    mse, vb = losses(torch.tensor([t]), output, torch.rand(1, *SHAPE), noise)
    (gradient,) = torch.autograd.grad((mse + vb).sum(), output)
    assert torch.isfinite(mse + vb).all()
    assert torch.isfinite(gradient).all()


def test_losses_compile_without_a_graph_break() -> None:
    chain = linear_schedule()
    x0, noise, t = torch.randn(3, *SHAPE), torch.randn(3, *SHAPE), torch.tensor([0, 7, 999])
    output = torch.randn(3, 4, 4, 4)

    def both(x0: Tensor, t: Tensor, noise: Tensor, output: Tensor) -> Tensor:
        mse, vb = training_losses(chain, output, x0, diffuse(chain, x0, t, noise), t, noise)
        return mse + vb

    expected = both(x0, t, noise, output)
    compiled = torch.compile(both, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x0, t, noise, output), expected)
