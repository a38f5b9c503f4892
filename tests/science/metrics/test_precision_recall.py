"""Precision and recall against torch-fidelity, image by image and for draws of half of the images."""

from __future__ import annotations

import pytest
import torch

from dit.metrics.bootstrap import random_halves
from dit.metrics.precision_recall import Manifold

from torch_fidelity.metric_prc import prc_features_to_metric  # isort: skip  (after dit.metrics, which patches torchvision)


def random_features(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)) + shift


def test_precision_and_recall_equal_torch_fidelitys() -> None:
    generated, real = random_features(400, 0, shift=0.4), random_features(500, 1)
    expected = prc_features_to_metric(generated, real, verbose=False)
    assert float(Manifold(real).covers(generated).float().mean()) == pytest.approx(expected["precision"])
    assert float(Manifold(generated).covers(real).float().mean()) == pytest.approx(expected["recall"])
    assert 0.05 < expected["precision"] < 0.95


def test_identical_sets_cover_each_other_and_distant_ones_do_not() -> None:
    here, far = random_features(100, 0), random_features(100, 1, shift=100)
    assert bool(Manifold(here).covers(here.clone()).all())
    assert not bool(Manifold(far).covers(here).any())


def test_the_share_covered_by_a_draw_is_that_of_a_manifold_of_its_images() -> None:
    generated, real = random_features(100, 0), random_features(300, 1)
    halves = list(random_halves(100, 3))
    alone = [float(Manifold(generated[torch.from_numpy(half)]).covers(real).double().mean()) for half in halves]
    assert Manifold(generated).shares(real, halves) == pytest.approx(alone)


def test_a_manifold_of_three_images_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 3"):
        Manifold(random_features(3, 1))
