"""Bootstrap intervals: their coverage, their width, and that they are reproducible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_fixtures import gaussian_of

from dit.metrics.bootstrap import Replicates, centred, estimate, replicate, resampled_counts
from dit.metrics.frechet import FrechetReference, FrechetResampler


def mean_replicates(values: np.ndarray, resamples: int = 400, seed: int = 0) -> Replicates:
    return replicate(lambda counts: float(counts @ values) / len(values), len(values), resamples, seed)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), confidence=st.sampled_from([0.6, 0.9, 0.99]))
def test_an_interval_contains_its_value(seed: int, confidence: float) -> None:
    values = np.random.default_rng(seed).exponential(size=50)
    interval = estimate(float(values.mean()), mean_replicates(values, 50, seed), confidence)
    assert interval.low <= interval.value <= interval.high


def test_draws_have_as_many_images_as_the_set_and_depend_on_the_seed() -> None:
    draws = [counts.tolist() for counts in resampled_counts(37, 20)]
    assert {sum(counts) for counts in draws} == {37}
    assert len({tuple(counts) for counts in draws}) == 20
    assert [counts.tolist() for counts in resampled_counts(37, 20)] == draws
    assert [counts.tolist() for counts in resampled_counts(37, 20, seed=1)] != draws


@pytest.mark.parametrize("count", [250, 1000])
def test_the_interval_of_a_mean_is_that_of_the_normal_law(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    interval = estimate(float(values.mean()), mean_replicates(values, 1000), 0.95)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(count), rel=0.1)


def test_centring_removes_the_bias_that_resampling_adds_to_a_frechet_distance() -> None:
    """With few images of many dimensions, the uncentred interval would lie above the value."""
    random = torch.Generator().manual_seed(0)
    reference = FrechetReference(gaussian_of(torch.randn(5000, 32, generator=random)))
    images = torch.randn(100, 32, generator=random)
    value, resampler = reference.distance(gaussian_of(images)), FrechetResampler(reference, images)
    raw = replicate(lambda counts: resampler.distance(torch.from_numpy(counts)), 100, 100)
    assert np.quantile(raw, 0.025) > value
    interval = estimate(value, centred(raw, value), 0.95)
    assert interval.low < value < interval.high
    assert centred(raw, value).mean() == pytest.approx(value)
    assert centred(raw, value).std() == pytest.approx(raw.std())


def test_intervals_cover_the_expected_distance_about_as_often_as_their_confidence() -> None:
    """Every repetition draws other images; the mean over repetitions estimates the expected distance."""
    random = torch.Generator().manual_seed(0)
    reference = FrechetReference(gaussian_of(torch.randn(20_000, 4, generator=random)))
    intervals = []
    for seed in range(40):
        images = torch.randn(300, 4, generator=random) + 0.5
        value, resampler = reference.distance(gaussian_of(images)), FrechetResampler(reference, images)
        raw = replicate(lambda c, r=resampler: r.distance(torch.from_numpy(c)), 300, 40, seed)  # type: ignore[misc]
        intervals.append(estimate(value, centred(raw, value), 0.9))
    truth = np.mean([interval.value for interval in intervals])
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert 0.75 <= covered <= 1.0
