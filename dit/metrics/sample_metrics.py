"""All metrics of one sample set, each with its interval."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit.console import progress
from dit.metrics.bootstrap import Counts, Replicates, centred, estimate, random_halves, replicate
from dit.metrics.extractors import Features
from dit.metrics.frechet import FeatureSums, FrechetReference, FrechetResampler, Gaussian
from dit.metrics.precision_recall import NEIGHBOURHOOD, Manifold
from dit.metrics.reference import Reference
from dit.metrics.torch_fidelity_api import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from dit.study.config import EvaluationConfig
from dit.study.records import Estimate

_SLOW_DIMENSIONS = 512
_ISC_SPLITS, _ISC_SPLIT_IMAGES = 10, 10


class SampleMetrics:
    """Measures sample sets against one reference, on a device."""

    def __init__(self, reference: Reference, evaluation: EvaluationConfig, device: torch.device) -> None:
        self._evaluation, self._device = evaluation, device
        self._real = reference.features
        mean, covariance = reference.gaussian.mean.to(device), reference.gaussian.covariance.to(device)
        self._frechet = FrechetReference(Gaussian(mean, covariance))

    def distance(self, features_ND: Tensor) -> float:
        """The Fréchet distance alone."""
        sums = FeatureSums(features_ND.shape[1], self._device)
        sums.add(features_ND)
        return self._frechet.distance(sums.gaussian())

    def measure(self, seen: Features, labels_N: npt.NDArray[np.int64]) -> tuple[dict[str, Estimate], Replicates]:
        """Every metric by name, and the centred replicates of the first, the Fréchet distance.

        InceptionV3 adds the Inception Score, the digits extractor the share of images that it takes for the class they
        were asked to be; precision and recall need eight images or more and the reference's features.
        """
        distance = self.distance(seen.features)
        replicates = centred(self._distances(seen.features), distance)
        metrics = {self._evaluation.metric: self._estimate(distance, replicates)}
        if self._evaluation.extractor == "inception":
            metrics["isc"] = self._inception_score(seen.logits)
        else:
            metrics["label_accuracy"] = self._share(seen.logits.argmax(dim=1) == torch.from_numpy(labels_N))
        if self._real is not None and len(self._real) > NEIGHBOURHOOD and len(seen.features) // 2 > NEIGHBOURHOOD:
            generated, real = seen.features.to(self._device), self._real.to(self._device)
            metrics["precision"] = self._share(Manifold(real).covers(generated))
            metrics["recall"] = self._recall(real, generated)
        return metrics, replicates

    def _distances(self, features_ND: Tensor) -> Replicates:
        resampler = FrechetResampler(self._frechet, features_ND)
        slow = features_ND.shape[1] >= _SLOW_DIMENSIONS
        with progress("intervals", self._evaluation.resamples, "resamples", enabled=slow) as bar:

            def statistic(counts: Counts) -> float:
                distance = resampler.distance(torch.from_numpy(counts))
                bar.advance()
                return distance

            return self._replicate(statistic, len(features_ND))

    def _inception_score(self, logits_NK: Tensor) -> Estimate:
        splits = max(1, min(_ISC_SPLITS, len(logits_NK) // _ISC_SPLIT_IMAGES))
        score = isc_features_to_metric(logits_NK, splits=splits)[KEY_METRIC_ISC_MEAN]
        log_p = logits_NK.to(self._device).double().log_softmax(dim=1)
        p = log_p.exp()
        entropies = -(p * log_p).sum(dim=1)

        def statistic(counts: Counts) -> float:
            weights = torch.from_numpy(counts).to(p) / len(p)
            marginal = weights @ p
            return float((-torch.xlogy(marginal, marginal).sum() - weights @ entropies).exp())

        return self._estimate(score, centred(self._replicate(statistic, len(p)), score))

    def _share(self, hits_N: Tensor) -> Estimate:
        hits = hits_N.numpy()
        replicates = self._replicate(lambda counts: float(counts @ hits) / len(hits), len(hits))
        return self._estimate(float(hits.mean()), replicates)

    def _recall(self, real_MD: Tensor, generated_ND: Tensor) -> Estimate:
        """The real images stay; what other generated ones would cover shows in halves of these."""
        manifold = Manifold(generated_ND)
        value = float(manifold.covers(real_MD).float().mean())
        replicates = manifold.shares(real_MD, random_halves(len(generated_ND), self._evaluation.resamples))
        return self._estimate(value, centred(replicates, value).clip(0, 1))

    def _replicate(self, statistic: Callable[[Counts], float], images: int) -> Replicates:
        return replicate(statistic, images, self._evaluation.resamples)

    def _estimate(self, value: float, replicates: Replicates) -> Estimate:
        return estimate(value, replicates, self._evaluation.confidence)
