"""Reverse diffusion: the inputs of the model, the noise of each step, and the final latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dit.diffusion.sampler import Denoiser, NoiseSource, sample
from dit.diffusion.schedule import linear_schedule
from dit.study.config import SamplingConfig

CHAIN = linear_schedule()
NULL = 10
LABELS = torch.tensor([3, 1, 4])
SHAPE = (3, 4, 2, 2)


def noise_source(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> NoiseSource:
    def draw(index: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + index))

    return draw


class Recorder:
    """A denoiser that returns a fixed function of its inputs and records them."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.calls.append((x.clone(), t.clone(), y.clone()))
        scale = (1 + y.view(-1, 1, 1, 1)) / 20
        return torch.cat([scale * x, torch.tanh(scale * x)], dim=1)


def run(denoise: Denoiser, noise: NoiseSource | None = None, **config: Any) -> Tensor:
    return sample(denoise, CHAIN, noise or noise_source(), LABELS, SamplingConfig(**config), NULL)


def test_model_receives_steps_of_the_training_chain_from_last_to_first() -> None:
    model = Recorder()
    run(model, steps=5)
    assert [t.tolist() for _, t, _ in model.calls] == [[step] * 3 for step in (999, 749, 500, 250, 0)]
    assert all(y.tolist() == LABELS.tolist() for _, _, y in model.calls)


def test_guidance_doubles_the_batch_and_no_guidance_does_not() -> None:
    model = Recorder()
    run(model, steps=2, cfg_scale=1.5)
    for x, t, y in model.calls:
        assert torch.equal(x[:3], x[3:])
        assert len(set(t.tolist())) == 1
        assert y.tolist() == [3, 1, 4, NULL, NULL, NULL]
    plain = Recorder()
    run(plain, steps=2, cfg_scale=1.0)
    assert [len(x) for x, _, _ in plain.calls] == [3, 3]


@pytest.mark.parametrize(
    ("config", "drawn"),
    [
        ({"steps": 4}, [0, 1, 2, 3]),
        ({"steps": 4, "sampler": "ddim"}, [0]),
        ({"steps": 4, "sampler": "ddim", "eta": 0.5}, [0, 1, 2, 3]),
    ],
)
def test_noise_is_drawn_by_step_number_and_not_for_the_last_step(config: dict[str, Any], drawn: list[int]) -> None:
    asked: list[int] = []
    source = noise_source()

    def noise(index: int) -> Tensor:
        asked.append(index)
        return source(index)

    run(Recorder(), noise, **config)
    assert asked == drawn


@pytest.mark.parametrize("config", [{}, {"sampler": "ddim"}, {"cfg_scale": 2.0}])
def test_sample_does_not_depend_on_its_batch(config: dict[str, Any]) -> None:
    together = run(Recorder(), steps=10, **config)
    for i in range(3):
        source = noise_source()
        alone = sample(
            Recorder(),
            CHAIN,
            lambda k, i=i, source=source: source(k)[i : i + 1],
            LABELS[i : i + 1],
            SamplingConfig(steps=10, **config),
            NULL,
        )
        torch.testing.assert_close(alone, together[i : i + 1])


def ancestral(noise: NoiseSource, steps: int, scale: float, guided: int) -> Tensor:
    """Guided ancestral sampling in float64 as the papers write it, one sample set to compare with."""
    chain, model = CHAIN.respaced(steps), Recorder()
    x = noise(0).double()
    for i, k in enumerate(reversed(range(steps)), start=1):
        t = torch.full((3,), int(chain.timestep_map[k]))
        with_label, without = model(x, t, LABELS), model(x, t, torch.full((3,), NULL))
        epsilon, v = with_label.chunk(2, dim=1)
        null = without.chunk(2, dim=1)[0]
        epsilon = torch.cat(
            [null[:, :guided] + scale * (epsilon[:, :guided] - null[:, :guided]), epsilon[:, guided:]], dim=1
        )
        x0 = (x - np.sqrt(1 - chain.alphas_cumprod[k]) * epsilon) / np.sqrt(chain.alphas_cumprod[k])
        mean = chain.posterior_mean_coef1[k] * x0 + chain.posterior_mean_coef2[k] * x
        low, high = chain.posterior_log_variance_clipped[k], chain.log_betas[k]
        deviation = torch.exp(0.5 * (low + (v + 1) / 2 * (high - low)))
        x = mean + (deviation * noise(i) if k else 0)
    return x


# float32 rounding grows along the chain.
@pytest.mark.parametrize(("steps", "tolerance"), [(2, 1e-5), (20, 1e-3), (250, 1e-2)])
@pytest.mark.parametrize("scale", [0.0, 0.4, 1.5, 4.0])
@pytest.mark.parametrize(("channels", "guided"), [("first3", 3), ("all", 4)])
def test_guided_ancestral_sampling_equals_the_formulas(
    scale: float, channels: str, guided: int, steps: int, tolerance: float
) -> None:
    expected = ancestral(noise_source(), steps, scale, guided)
    actual = run(Recorder(), steps=steps, cfg_scale=scale, guided_channels=channels)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_few_channels_are_all_guided(channels: int) -> None:
    noise = noise_source((3, channels, 2, 2))
    first, every = (run(Recorder(), noise, steps=6, cfg_scale=3.0, guided_channels=name) for name in ("first3", "all"))
    assert torch.equal(first, every)
    assert not torch.equal(first, run(Recorder(), noise, steps=6))


def test_ddim_equals_the_formulas() -> None:
    """Song et al. eq. 12 in float64, with and without noise."""
    for eta in (0.0, 0.7, 1.0):
        chain, model, noise = CHAIN.respaced(10, ddim=True), Recorder(), noise_source()
        x = noise(0).double()
        for i, k in enumerate(reversed(range(10)), start=1):
            bar, before = chain.alphas_cumprod[k], chain.alphas_cumprod_prev[k]
            epsilon = model(x, torch.full((3,), int(chain.timestep_map[k])), LABELS).chunk(2, dim=1)[0]
            x0 = (x - np.sqrt(1 - bar) * epsilon) / np.sqrt(bar)
            sigma = eta * np.sqrt(chain.posterior_variance[k])
            x = np.sqrt(before) * x0 + np.sqrt(1 - before - sigma**2) * epsilon + (sigma * noise(i) if k else 0)
        actual = run(Recorder(), steps=10, sampler="ddim", eta=eta)
        torch.testing.assert_close(actual.double(), x, rtol=1e-3, atol=1e-3 * x.abs().max().item())


MEAN = torch.tensor([1.058, 0.592, 0.022, -0.392]).view(1, 4, 1, 1)
STD = torch.tensor([0.760, 0.842, 0.676, 0.597]).view(1, 4, 1, 1)


def optimal(x: Tensor, t: Tensor, _: Tensor) -> Tensor:
    """The best noise prediction for independent Gaussian latents with ImageNet's mean and deviation per channel."""
    bar = torch.from_numpy(CHAIN.alphas_cumprod)[t].float().view(-1, 1, 1, 1)
    epsilon = (1 - bar).sqrt() * (x - bar.sqrt() * MEAN) / (bar * STD**2 + 1 - bar)
    return torch.cat([epsilon, torch.zeros_like(epsilon)], dim=1)


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 250), ("ddpm", 1000), ("ddim", 250)])
def test_optimal_model_samples_the_data_distribution(sampler: str, steps: int) -> None:
    noise = noise_source((64, 4, 8, 8))
    config = SamplingConfig(sampler=sampler, steps=steps)
    end = sample(optimal, CHAIN, noise, torch.zeros(64, dtype=torch.int64), config, NULL)
    torch.testing.assert_close(end.mean(dim=(0, 2, 3)), MEAN.flatten(), rtol=0, atol=0.04)
    torch.testing.assert_close(end.std(dim=(0, 2, 3)), STD.flatten(), rtol=0.03, atol=0)


def test_latents_of_a_bf16_model_are_float32() -> None:
    end = run(lambda x, t, y: Recorder()(x, t, y).bfloat16(), steps=3, cfg_scale=2.0)
    assert end.dtype == torch.float32


def test_on_step_is_called_once_per_step() -> None:
    steps: list[None] = []
    sample(Recorder(), CHAIN, noise_source(), LABELS, SamplingConfig(steps=7), NULL, lambda: steps.append(None))
    assert len(steps) == 7
