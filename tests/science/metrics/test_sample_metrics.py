"""The metrics of a sample set and their intervals, on random features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sample_fixtures import gaussian_of

from dit.metrics.extractors import Features
from dit.metrics.precision_recall import Manifold
from dit.metrics.reference import Reference
from dit.metrics.sample_metrics import SampleMetrics
from dit.study.config import EvaluationConfig


def sample_metrics(real: torch.Tensor) -> SampleMetrics:
    evaluation = EvaluationConfig(at_steps=(1,), extractor="digits", resamples=100)
    return SampleMetrics(Reference(gaussian_of(real), real, len(real)), evaluation, torch.device("cpu"))


@pytest.mark.parametrize("wrong", [0, 1, 9, 10])
def test_the_interval_of_a_share_lies_between_0_and_1(wrong: int) -> None:
    real = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    labels = np.array([1] * wrong + [0] * (10 - wrong))
    logits = torch.tensor([[1.0, 0.0]]).repeat(10, 1)
    metrics, _ = sample_metrics(real).measure(Features(real[:10], logits), labels)
    assert metrics["label_accuracy"].value == pytest.approx(1 - wrong / 10)
    for name in ("label_accuracy", "precision", "recall"):
        assert 0 <= metrics[name].low <= metrics[name].value <= metrics[name].high <= 1


def test_the_interval_of_recall_is_as_wide_as_the_spread_over_other_samples() -> None:
    random = torch.Generator().manual_seed(0)
    real = torch.randn(600, 8, generator=random)

    def generated() -> torch.Tensor:
        return 0.7 * torch.randn(200, 8, generator=random) + 0.3

    redrawn = [float(Manifold(generated()).covers(real).float().mean()) for _ in range(100)]
    low, high = np.quantile(redrawn, [0.025, 0.975])
    labels, logits = np.zeros(200, dtype=np.int64), torch.zeros(200, 2)
    recalls = [sample_metrics(real).measure(Features(generated(), logits), labels)[0]["recall"] for _ in range(5)]
    assert np.mean([recall.high - recall.low for recall in recalls]) == pytest.approx(high - low, rel=0.25)
