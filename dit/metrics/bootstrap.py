"""Bootstrap intervals: how much a metric would move if the same model had drawn other images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from dit.study.records import Estimate

Counts = npt.NDArray[np.int64]
Replicates = npt.NDArray[np.float64]


def resampled_counts(images: int, resamples: int, seed: int = 0) -> Iterator[Counts]:
    """How often each image occurs in each of `resamples` draws of all images with replacement, [images].

    A function of its arguments: models whose images share their noise are drawn again alike, which keeps them paired.
    """
    random = np.random.Generator(np.random.SFC64([seed, images]))
    for _ in range(resamples):
        yield np.bincount(random.integers(images, size=images), minlength=images)


def random_halves(images: int, resamples: int, seed: int = 0) -> Iterator[npt.NDArray[np.bool_]]:
    """Which images are in each of `resamples` draws of half of them without replacement, bool [images].

    For what depends on neighbours, where an image that is drawn twice would be its own. An average of half as many
    images varies twice as much, and half of that is missing among halves of the same images: the spread over halves
    is that over other sets of all images.
    """
    random = np.random.Generator(np.random.SFC64([seed, images]))
    for _ in range(resamples):
        yield random.permutation(images) < images // 2


def replicate(statistic: Callable[[Counts], float], images: int, resamples: int, seed: int = 0) -> Replicates:
    """The statistic of every draw, [resamples]."""
    return np.array([statistic(counts) for counts in resampled_counts(images, resamples, seed)])


def centred(replicates: Replicates, value: float) -> Replicates:
    """Replicates moved so that their mean is the value.

    A Fréchet distance from N images is too large by about b / N, because noise in the mean and in the covariance adds
    to it. Drawing again from those N images adds the same noise once more: replicates scatter about the value
    plus b / N. Their spread is the value's uncertainty; their place is not, so only the spread is kept. The value's own
    b / N stays in it, equally for all models, which is why sets of different N are never compared. Inception Score
    behaves alike. Means such as precision are unbiased: their replicates are in place, and moved could lie above 1.
    """
    moved: Replicates = replicates - replicates.mean() + value
    return moved


def estimate(value: float, replicates: Replicates, confidence: float) -> Estimate:
    """The value with the middle `confidence` share of its replicates, which are centred first where they are biased."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))
