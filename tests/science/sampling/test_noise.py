"""Noise and labels of sample sets: they depend on seed and sample number alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit.sampling import noise
from dit.sampling.noise import NoiseStream, draws_per_sample, sample_labels
from dit.study.config import SamplingConfig
from dit.study.variants import InputSpec

INPUTS = InputSpec(channels=2, size=4, classes=10)
CPU = torch.device("cpu")


def sampling(**keys: object) -> SamplingConfig:
    return SamplingConfig.model_validate({"steps": 7, "num_samples": 40, **keys})


def all_draws(config: SamplingConfig, indices: list[int]) -> torch.Tensor:
    """[draws, N, C, H, W]."""
    with NoiseStream(config, indices, INPUTS, CPU) as stream:
        return torch.stack([stream(k) for k in range(draws_per_sample(config))])


@settings(max_examples=25, deadline=None)
@given(indices=st.lists(st.integers(0, 10**6), min_size=1, max_size=6, unique=True), chunk=st.integers(1, 4000))
def test_the_noise_of_a_sample_depends_on_its_number_alone(indices: list[int], chunk: int) -> None:
    """It depends neither on the batch and its order nor on the size of a chunk."""
    alone = torch.cat([all_draws(sampling(), [index]) for index in indices], dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "CHUNK_BYTES", chunk)
        assert torch.equal(all_draws(sampling(), indices), alone)


def test_noise_is_standard_normal_and_never_repeats() -> None:
    drawn = all_draws(sampling(steps=50), list(range(100)))
    assert drawn.shape == (50, 100, 2, 4, 4)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.01)
    assert float(drawn.std()) == pytest.approx(1, abs=0.01)
    assert len(drawn.unique()) > 0.99 * drawn.numel()


def test_another_seed_gives_other_noise_and_labels() -> None:
    one, other = sampling(seed=0), sampling(seed=1)
    assert not torch.equal(all_draws(one, [3]), all_draws(other, [3]))
    assert not np.array_equal(sample_labels(one, 1000), sample_labels(other, 1000))


@pytest.mark.parametrize(
    ("keys", "draws"),
    [({}, 7), ({"sampler": "ddim", "eta": 0.0}, 1), ({"sampler": "ddim", "eta": 0.5}, 7)],
)
def test_the_stream_has_as_many_draws_as_the_sampler_uses(keys: dict[str, object], draws: int) -> None:
    config = sampling(**keys)
    assert draws_per_sample(config) == draws
    with NoiseStream(config, [0], INPUTS, CPU) as stream, pytest.raises(IndexError):
        stream(draws)


def test_an_earlier_draw_is_refused() -> None:
    with NoiseStream(sampling(steps=900), list(range(600)), INPUTS, CPU) as stream:
        stream(899)
        with pytest.raises(IndexError, match="after draw"):
            stream(0)


def test_labels_of_a_smaller_set_are_the_first_of_a_larger_one() -> None:
    small, large = sampling(num_samples=100), sampling(num_samples=5000)
    assert np.array_equal(sample_labels(small, 1000), sample_labels(large, 1000)[:100])


def test_random_labels_are_uniform_over_all_classes() -> None:
    counts = np.bincount(sample_labels(sampling(num_samples=20_000), 10), minlength=10)
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_balanced_labels_take_turns() -> None:
    labels = sample_labels(sampling(labels="balanced", num_samples=25), 10)
    assert labels.tolist() == [*range(10), *range(10), *range(5)]
