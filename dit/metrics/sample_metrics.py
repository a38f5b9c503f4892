"""All metrics of one sample set, each with its interval: the functions that the table of metrics names.

Shapes: N samples, M real images, D feature dimensions, K classes of the extractor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pkgutil import resolve_name
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit.console import progress
from dit.metrics.bootstrap import Counts, Replicates, centred, estimate, random_halves, replicate, resampled_counts
from dit.metrics.extractors import Features
from dit.metrics.frechet import FeatureSums, FrechetReference, FrechetResampler, Gaussian
from dit.metrics.frechet_infinity import extrapolated
from dit.metrics.kernel_distance import squared_mmd
from dit.metrics.precision_recall import NEIGHBOURHOOD, Manifold
from dit.metrics.reference import Reference
from dit.metrics.table import METRICS
from dit.metrics.torch_fidelity_api import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from dit.study.config import EvaluationConfig
from dit.study.records import Estimate

EXTRAPOLATED_PER_DIMENSION = 4
"""Fewest images per feature dimension for an extrapolation: with fewer the bias is not linear in 1 / N."""
_SLOW_DIMENSIONS = 512
_ISC_SPLITS, _ISC_SPLIT_IMAGES = 10, 10


class Measurement(NamedTuple):
    """A metric's value and its bootstrap replicates, [resamples], centred on the value if the metric is biased."""

    value: float
    replicates: Replicates


@dataclass(frozen=True)
class SampleFeatures:
    """The inputs of a metric: features of one sample set, and the reference."""

    generated_ND: Tensor
    logits_NK: Tensor
    labels_N: Tensor
    """Class labels that the samples were drawn for, int64, on the CPU like the logits."""
    real_MD: Tensor | None
    """Features of real images; None if the reference has none."""
    reference: FrechetReference
    resamples: int

    @property
    def manifolds(self) -> tuple[Tensor, Tensor] | None:
        """Real and generated features; None if there are too few for a manifold of every half of them."""
        real, generated = self.real_MD, self.generated_ND
        if real is None or min(len(real), len(generated) // 2) <= NEIGHBOURHOOD:
            return None
        return real, generated

    @cached_property
    def frechet(self) -> Measurement:
        """The Fréchet distance to the reference, which two metrics need."""
        value = _distance(self.reference, self.generated_ND)
        slow = self.generated_ND.shape[1] >= _SLOW_DIMENSIONS
        with progress("intervals", self.resamples, "resamples", enabled=slow) as bar:

            def statistic(counts: Counts) -> float:
                distance = self.resampler.distance(torch.from_numpy(counts))
                bar.advance()
                return distance

            return Measurement(value, centred(self.replicate(statistic), value))

    @cached_property
    def resampler(self) -> FrechetResampler:
        """Distances of draws of the samples."""
        return FrechetResampler(self.reference, self.generated_ND)

    def replicate(self, statistic: Callable[[Counts], float]) -> Replicates:
        """The statistic of every bootstrap draw of the samples, [resamples]."""
        return replicate(statistic, len(self.generated_ND), self.resamples)


class SampleMetrics:
    """Measures sample sets against one reference, on a device."""

    def __init__(self, reference: Reference, evaluation: EvaluationConfig, device: torch.device) -> None:
        self._evaluation, self._device = evaluation, device
        self._real = reference.features
        mean, covariance = reference.gaussian.mean.to(device), reference.gaussian.covariance.to(device)
        self._frechet = FrechetReference(Gaussian(mean, covariance))

    def distance(self, features_ND: Tensor) -> float:
        """The Fréchet distance of features [N, D] to the reference."""
        return _distance(self._frechet, features_ND)

    def expected_distance(self, count: int) -> float:
        """The distance of `count` draws from the reference's own Gaussian: the bias of so few images."""
        root = self._frechet.root_DR
        generator = torch.Generator().manual_seed(count)
        draws = torch.randn(count, root.shape[1], generator=generator, dtype=torch.float64).to(root.device)
        return self.distance(self._frechet.mean + draws @ root.T)

    def measure(self, output: Features, labels_N: npt.NDArray[np.int64]) -> tuple[dict[str, Estimate], Replicates]:
        """All metrics that are defined for these samples, by name, and the primary metric's replicates [resamples]."""
        samples = SampleFeatures(
            generated_ND=output.features.to(self._device),
            logits_NK=output.logits,
            labels_N=torch.from_numpy(labels_N),
            real_MD=None if self._real is None else self._real.to(self._device),
            reference=self._frechet,
            resamples=self._evaluation.resamples,
        )
        measured: dict[str, Measurement] = {}
        for metric in METRICS.values():
            if metric.extractor not in (None, self._evaluation.extractor):
                continue
            function: Callable[[SampleFeatures], Measurement | None] = resolve_name(metric.function)
            if measurement := function(samples):
                measured[metric.name] = measurement
        confidence = self._evaluation.confidence
        estimates = {name: estimate(*measurement, confidence) for name, measurement in measured.items()}
        return estimates, measured[self._evaluation.metric].replicates


def frechet(samples: SampleFeatures) -> Measurement:
    """Fréchet distance to the reference (Heusel et al. 2017)."""
    return samples.frechet


def frechet_infinity(samples: SampleFeatures) -> Measurement | None:
    """Fréchet distance extrapolated to infinitely many images (Chong & Forsyth 2020); None for few images."""
    count, dimensions = samples.generated_ND.shape
    if count < EXTRAPOLATED_PER_DIMENSION * dimensions:
        return None
    finite = samples.frechet
    value, error = extrapolated(samples.resampler, count, finite.value)
    # The images vary as in the distance itself; the choice of the subsets adds its own error.
    noise = np.random.default_rng(0).standard_normal(len(finite.replicates))
    return Measurement(value, centred(finite.replicates + error * noise, value))


def kernel_distance(samples: SampleFeatures) -> Measurement | None:
    """Kernel distance to real images, KID with Inception's features; None if the reference has none."""
    real = samples.real_MD
    if real is None or min(len(real), len(samples.generated_ND)) < 2:
        return None
    counts = np.stack(list(resampled_counts(len(samples.generated_ND), samples.resamples)), axis=1)
    value, replicates = squared_mmd(samples.generated_ND, real, torch.from_numpy(counts))
    return Measurement(value, centred(replicates, value))


def inception_score(samples: SampleFeatures) -> Measurement:
    """Inception Score (Salimans et al. 2016): mean over ten splits, or over fewer so that each has ten images."""
    splits = max(1, min(_ISC_SPLITS, len(samples.logits_NK) // _ISC_SPLIT_IMAGES))
    score = isc_features_to_metric(samples.logits_NK, splits=splits)[KEY_METRIC_ISC_MEAN]
    # exp of the mean KL divergence of p(y|x) from p(y), which is exp(H(y) - H(y|x)). Replicates use a single split.
    log_p = samples.logits_NK.to(samples.generated_ND.device).double().log_softmax(dim=1)
    p = log_p.exp()
    entropies = -(p * log_p).sum(dim=1)

    def statistic(counts: Counts) -> float:
        weights = torch.from_numpy(counts).to(p) / len(p)
        marginal = weights @ p
        return float((-torch.xlogy(marginal, marginal).sum() - weights @ entropies).exp())

    return Measurement(score, centred(samples.replicate(statistic), score))


def label_accuracy(samples: SampleFeatures) -> Measurement:
    """Share of the samples that the extractor assigns to the class they were drawn for."""
    return mean(samples, samples.logits_NK.argmax(dim=1) == samples.labels_N)


def precision(samples: SampleFeatures) -> Measurement | None:
    """Share of the samples on the real images' manifold (Kynkäänniemi et al. 2019, equation 2)."""
    if not samples.manifolds:
        return None
    real_MD, generated_ND = samples.manifolds
    return mean(samples, Manifold(real_MD).covers(generated_ND))


def recall(samples: SampleFeatures) -> Measurement | None:
    """Share of the real images on the samples' manifold (Kynkäänniemi et al. 2019, equation 2)."""
    if not samples.manifolds:
        return None
    real_MD, generated_ND = samples.manifolds
    # The real images stay fixed. Halves of the samples give the spread over other sample sets.
    manifold = Manifold(generated_ND)
    value = float(manifold.covers(real_MD).float().mean())
    replicates = manifold.shares(real_MD, random_halves(len(generated_ND), samples.resamples))
    return Measurement(value, centred(replicates, value).clip(0, 1))


def mean(samples: SampleFeatures, values_N: Tensor) -> Measurement:
    """The mean of one value per sample, values [N]."""
    values = values_N.cpu().numpy()
    replicates = samples.replicate(lambda counts: float(counts @ values) / len(values))
    return Measurement(float(values.mean()), replicates)


def _distance(reference: FrechetReference, features_ND: Tensor) -> float:
    sums = FeatureSums(features_ND.shape[1], reference.mean.device)
    sums.add(features_ND)
    return reference.distance(sums.gaussian())
