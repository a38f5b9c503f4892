"""The Fréchet distance without the bias of a finite sample set (Chong & Forsyth 2020, section 4).

From N images the distance is too large by about b / N: noise in mean and covariance adds to it. The distances of
subsets of n images lie on a line in 1 / n, and its value at 1 / n = 0 is the distance of infinitely many images.
"""

from __future__ import annotations

import numpy as np
import torch

from dit.metrics.frechet import FrechetResampler

ORDERS = 8
"""Random orders of the images; the subsets are the beginnings of each."""
SUBSETS = 4
SMALLEST_PART = 1 / 3
"""The smallest subset's share of the images."""


def extrapolated(resampler: FrechetResampler, count: int, distance: float) -> tuple[float, float]:
    """The extrapolated distance of `count` images, and the standard error that the choice of subsets causes.

    `distance` is that of all images. The orders depend on `count` alone, so they are the same for all models.
    """
    inverse = np.linspace(1, 1 / SMALLEST_PART, SUBSETS + 1) / count
    sizes = [round(1 / each) for each in inverse[1:]]
    random = np.random.Generator(np.random.SFC64([1, count]))
    limits = []
    for _ in range(ORDERS):
        ranks = torch.from_numpy(random.permutation(count))
        distances = [distance, *(resampler.distance(ranks < size) for size in sizes)]
        _, limit = np.polyfit([1 / count, *(1 / size for size in sizes)], distances, 1)
        limits.append(float(limit))
    return float(np.mean(limits)), float(np.std(limits, ddof=1) / ORDERS**0.5)
