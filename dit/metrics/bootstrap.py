"""Bootstrap intervals (Efron 1979): the spread of a metric over other sample sets of the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from dit.study.records import Estimate

Counts = npt.NDArray[np.int64]
Replicates = npt.NDArray[np.float64]


def resampled_counts(images: int, resamples: int, seed: int = 0) -> Iterator[Counts]:
    """`resamples` draws of all images with replacement: the count of each image in each draw, int64 [images].

    The draws depend on the arguments alone, so the draws of two models agree and their images stay paired by noise.
    """
    random = np.random.Generator(np.random.SFC64([seed, images]))
    for _ in range(resamples):
        yield np.bincount(random.integers(images, size=images), minlength=images)


def random_halves(images: int, resamples: int, seed: int = 0) -> Iterator[npt.NDArray[np.bool_]]:
    """`resamples` draws of half of the images without replacement: True for each image drawn, bool [images].

    For metrics based on nearest neighbours, where a duplicate would be its own neighbour.
    """
    # A half has twice the variance of the whole set. Drawing without replacement halves it, so the spread over halves
    # equals the spread over independent sets of all images.
    random = np.random.Generator(np.random.SFC64([seed, images]))
    for _ in range(resamples):
        yield random.permutation(images) < images // 2


def replicate(statistic: Callable[[Counts], float], images: int, resamples: int, seed: int = 0) -> Replicates:
    """The statistic of every draw of `resampled_counts`, float64 [resamples]."""
    return np.array([statistic(counts) for counts in resampled_counts(images, resamples, seed)])


def centred(replicates: Replicates, value: float) -> Replicates:
    """Replicates shifted so that their mean is the value: for biased metrics, whose replicates have twice the bias.

    Means such as precision are unbiased and need no shift, which could move them above 1.
    """
    # A Fréchet distance from N images is too large by about b / N, because noise in mean and covariance adds to it
    # (Chong & Forsyth 2020). Resampling these N images adds the same noise again, so replicates scatter about the
    # value plus b / N. Only their spread is kept. The bias of the value itself stays: it is about equal for all models
    # with the same N, and sets of different N are never compared. The Inception Score is biased in the same way.
    moved: Replicates = replicates - replicates.mean() + value
    return moved


def estimate(value: float, replicates: Replicates, confidence: float) -> Estimate:
    """The value with its percentile interval: the middle `confidence` share of the replicates.

    Replicates of a biased metric must be centred first.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))
