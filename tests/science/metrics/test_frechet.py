"""The Fréchet distance against closed forms and torch-fidelity, and its sums over parts."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_fixtures import gaussian_of
from torch import Tensor

from dit.metrics import torch_fidelity_api  # noqa: F401  (patches torchvision before torch_fidelity is imported)
from dit.metrics.frechet import FeatureSums, FrechetReference, FrechetResampler, Gaussian, frechet_distance

from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # isort: skip


def features(count: int, dimensions: int, seed: int, shift: float = 0.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=random, dtype=torch.float64)
    return torch.randn(count, dimensions, generator=random, dtype=torch.float64) @ mix + shift


def torch_fidelity_distance(first: Tensor, second: Tensor) -> float:
    statistics = [fid_features_to_statistics(each) for each in (first, second)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def test_the_distance_of_gaussians_with_diagonal_covariances() -> None:
    """If covariances commute, the distance is that of the means plus that of the standard deviations."""
    one = Gaussian(torch.tensor([0.0, 3.0]).double(), torch.diag(torch.tensor([4.0, 9.0])).double())
    other = Gaussian(torch.tensor([4.0, 0.0]).double(), torch.diag(torch.tensor([1.0, 25.0])).double())
    assert frechet_distance(one, other) == pytest.approx(3**2 + 4**2 + (2 - 1) ** 2 + (3 - 5) ** 2)


def test_scaling_all_features_scales_the_distance_by_the_square() -> None:
    one, other = features(300, 8, 0), features(300, 8, 1, shift=1)
    near = frechet_distance(gaussian_of(one), gaussian_of(other))
    assert frechet_distance(gaussian_of(10 * one), gaussian_of(10 * other)) == pytest.approx(100 * near)


def test_the_distance_of_a_set_to_itself_is_zero() -> None:
    own = gaussian_of(features(500, 32, 0))
    assert frechet_distance(own, own) == pytest.approx(0, abs=1e-8 * float(own.covariance.trace()))


def test_a_rotation_of_both_sets_keeps_the_distance() -> None:
    one, other = features(200, 16, 0), features(200, 16, 1, shift=0.5)
    rotation, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    turned = frechet_distance(gaussian_of(one @ rotation), gaussian_of(other @ rotation))
    assert turned == pytest.approx(frechet_distance(gaussian_of(one), gaussian_of(other)))


# The last three have fewer images than dimensions.
@pytest.mark.parametrize(
    ("first", "second", "dimensions", "near"),
    [(1000, 1100, 64, 1e-6), (500, 600, 192, 1e-6), (20, 1000, 64, 1e-5), (1000, 20, 64, 1e-5), (20, 30, 64, 1e-5)],
)
def test_the_distance_equals_torch_fidelitys(first: int, second: int, dimensions: int, near: float) -> None:
    one, other = features(first, dimensions, 0, shift=0.3), features(second, dimensions, 1)
    ours = frechet_distance(gaussian_of(one), gaussian_of(other))
    assert ours == pytest.approx(torch_fidelity_distance(one, other), rel=near)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 100), max_size=5), seed=st.integers(0, 1000))
def test_sums_of_parts_give_mean_and_covariance_of_the_whole(cuts: list[int], seed: int) -> None:
    data = features(100, 6, seed, shift=2)
    edges = [0, *sorted(cuts), 100]
    merged = FeatureSums(6)
    for start, stop in pairwise(edges):
        part = FeatureSums(6)
        part.add(data[start:stop])
        merged.merge(part)
    assert merged.count == 100
    torch.testing.assert_close(merged.gaussian().mean, data.mean(dim=0))
    torch.testing.assert_close(merged.gaussian().covariance, torch.cov(data.T))


def test_float32_features_give_the_same_distance() -> None:
    data = features(2000, 16, 0, shift=50)
    exact = frechet_distance(gaussian_of(data), gaussian_of(features(2000, 16, 1, shift=50)))
    single = frechet_distance(gaussian_of(data.float()), gaussian_of(features(2000, 16, 1, shift=50).float()))
    assert single == pytest.approx(exact, rel=1e-4)


def test_the_distance_of_nan_features_is_nan() -> None:
    own = gaussian_of(features(100, 4, 0))
    assert math.isnan(FrechetReference(own).distance(Gaussian(own.mean * math.nan, own.covariance)))


def test_the_covariance_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="two images"):
        gaussian_of(features(1, 4, 0))


@pytest.mark.parametrize("images", [300, 12])
def test_the_resampled_distance_equals_that_of_the_drawn_images(images: int) -> None:
    """Many images use the Gram matrix over dimensions, few images the one over images."""
    data, reference = features(images, 24, 0, shift=0.2), FrechetReference(gaussian_of(features(400, 24, 1)))
    counts = torch.bincount(
        torch.randint(images, (images,), generator=torch.Generator().manual_seed(3)), minlength=images
    )
    expected = reference.distance(gaussian_of(data.repeat_interleave(counts, dim=0)))
    assert FrechetResampler(reference, data).distance(counts) == pytest.approx(expected, rel=1e-8)
