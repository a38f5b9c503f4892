"""Bootstrap intervals: what they contain, how they shrink, and that they are the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit.metrics.bootstrap import Replicates, centred, estimate, replicate, resampled_counts
from dit.metrics.extractors import Features
from dit.metrics.frechet import FeatureSums, FrechetReference, FrechetResampler
from dit.metrics.precision_recall import Manifold
from dit.metrics.reference import Reference
from dit.metrics.sample_metrics import SampleMetrics
from dit.study.config import EvaluationConfig


def mean_replicates(values: np.ndarray, resamples: int = 400, seed: int = 0) -> Replicates:
    return replicate(lambda counts: float(counts @ values) / len(values), len(values), resamples, seed)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), confidence=st.sampled_from([0.6, 0.9, 0.99]))
def test_an_interval_contains_its_value(seed: int, confidence: float) -> None:
    values = np.random.default_rng(seed).exponential(size=50)
    found = estimate(float(values.mean()), mean_replicates(values, 50, seed), confidence)
    assert found.low <= found.value <= found.high


def test_every_draw_takes_as_many_images_as_there_are() -> None:
    draws = list(resampled_counts(37, 20))
    assert {int(counts.sum()) for counts in draws} == {37}
    assert len({counts.tobytes() for counts in draws}) == 20


def test_draws_are_a_function_of_the_seed() -> None:
    values = np.random.default_rng(0).normal(size=100)
    assert np.array_equal(mean_replicates(values, seed=1), mean_replicates(values, seed=1))
    assert not np.array_equal(mean_replicates(values, seed=1), mean_replicates(values, seed=2))


def test_four_times_the_images_halve_the_interval() -> None:
    random = np.random.default_rng(0)
    widths = []
    for count in (500, 2000):
        values = random.normal(size=count)
        found = estimate(float(values.mean()), mean_replicates(values), 0.95)
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.2)


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    found = estimate(float(values.mean()), mean_replicates(values, 1000), 0.95)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(1000), rel=0.1)


def sample_metrics(real: torch.Tensor) -> SampleMetrics:
    sums = FeatureSums(real.shape[1])
    sums.add(real)
    evaluation = EvaluationConfig(at_steps=(1,), extractor="digits", resamples=100)
    return SampleMetrics(Reference(sums.gaussian(), real, len(real)), evaluation, torch.device("cpu"))


@pytest.mark.parametrize("wrong", [0, 1, 9, 10])
def test_the_interval_of_a_share_lies_between_none_and_all(wrong: int) -> None:
    real = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    labels = np.array([1] * wrong + [0] * (10 - wrong))
    logits = torch.tensor([[1.0, 0.0]]).repeat(10, 1)
    metrics, _ = sample_metrics(real).measure(Features(real[:10], logits), labels)
    assert metrics["label_accuracy"].value == pytest.approx(1 - wrong / 10)
    for name in ("label_accuracy", "precision", "recall"):
        assert 0 <= metrics[name].low <= metrics[name].value <= metrics[name].high <= 1


def test_the_interval_of_recall_is_what_other_generated_images_would_make_of_it() -> None:
    random = torch.Generator().manual_seed(0)
    real = torch.randn(600, 8, generator=random)

    def generated() -> torch.Tensor:
        return 0.7 * torch.randn(200, 8, generator=random) + 0.3

    redrawn = [float(Manifold(generated()).covers(real).float().mean()) for _ in range(100)]
    low, high = np.quantile(redrawn, [0.025, 0.975])
    labels, logits = np.zeros(200, dtype=np.int64), torch.zeros(200, 2)
    found = [sample_metrics(real).measure(Features(generated(), logits), labels)[0]["recall"] for _ in range(5)]
    assert np.mean([each.high - each.low for each in found]) == pytest.approx(high - low, rel=0.25)


def test_centring_takes_away_the_bias_that_drawing_again_adds_to_a_frechet_distance() -> None:
    """Few images of many dimensions: uncentred, the whole interval would lie above the value."""
    random = torch.Generator().manual_seed(0)
    sums = FeatureSums(32)
    sums.add(torch.randn(5000, 32, generator=random))
    reference = FrechetReference(sums.gaussian())
    images = torch.randn(100, 32, generator=random)
    own = FeatureSums(32)
    own.add(images)
    value = reference.distance(own.gaussian())
    resampler = FrechetResampler(reference, images)
    raw = replicate(lambda counts: resampler.distance(torch.from_numpy(counts)), 100, 100)
    assert np.quantile(raw, 0.025) > value
    found = estimate(value, centred(raw, value), 0.95)
    assert found.low < value < found.high
    assert centred(raw, value).mean() == pytest.approx(value)
    assert centred(raw, value).std() == pytest.approx(raw.std())


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """The distance of Gaussian features, of which each repetition sees others; its expectation is their mean."""
    random = torch.Generator().manual_seed(0)
    sums = FeatureSums(4)
    sums.add(torch.randn(20_000, 4, generator=random))
    reference = FrechetReference(sums.gaussian())
    found = []
    for seed in range(40):
        images = torch.randn(300, 4, generator=random) + 0.5
        own, resampler = FeatureSums(4), FrechetResampler(reference, images)
        own.add(images)
        raw = replicate(lambda c, r=resampler: r.distance(torch.from_numpy(c)), 300, 40, seed)  # type: ignore[misc]
        value = reference.distance(own.gaussian())
        found.append(estimate(value, centred(raw, value), 0.9))
    truth = np.mean([each.value for each in found])
    covered = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.75 <= covered <= 1.0
