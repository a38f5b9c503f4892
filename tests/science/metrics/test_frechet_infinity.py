"""The extrapolated Fréchet distance on Gaussians, whose distance is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sample_fixtures import gaussian_of

from dit.metrics.frechet import FrechetReference, FrechetResampler, Gaussian
from dit.metrics.frechet_infinity import extrapolated

DIMENSIONS = 24
SCALES = torch.logspace(0, -1, DIMENSIONS, dtype=torch.float64)
REFERENCE = FrechetReference(Gaussian(torch.zeros(DIMENSIONS).double(), torch.diag(SCALES**2)))
# Covariances that commute: the squared distance of the means plus that of the standard deviations.
TRUE = float((0.2 * SCALES).square().sum() + (0.1 * SCALES).square().sum())


def measured(seed: int, count: int = 300) -> tuple[float, float, float]:
    """The distance of this many images, its extrapolation, and the extrapolation's error."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(count, DIMENSIONS, generator=random, dtype=torch.float64) * 1.1 * SCALES + 0.2 * SCALES
    distance = REFERENCE.distance(gaussian_of(images))
    return distance, *extrapolated(FrechetResampler(REFERENCE, images), count, distance)


def test_the_extrapolation_takes_the_bias_away() -> None:
    finite, infinite, _ = (np.array(column) for column in zip(*map(measured, range(40)), strict=True))
    error = infinite.std() / np.sqrt(len(infinite))
    assert finite.mean() - TRUE > 8 * error
    assert infinite.mean() == pytest.approx(TRUE, abs=4 * error)


def test_its_error_is_that_of_the_choice_of_subsets_alone() -> None:
    """It adds little to the spread over sample sets, which the replicates of the distance have."""
    finite, infinite, errors = (np.array(column) for column in zip(*map(measured, range(40)), strict=True))
    assert np.hypot(finite.std(), errors.mean()) == pytest.approx(infinite.std(), rel=0.25)
