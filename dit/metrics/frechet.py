"""Fréchet distance between Gaussians fitted to features (Heusel et al. 2017), in float64, on any device.

|m - m_r|^2 + tr S + tr S_r - 2 tr (S_r^1/2 S S_r^1/2)^1/2, by symmetric eigendecompositions: exact for covariances of
any rank, and faster than a matrix square root. Shapes: N images, D feature dimensions, R the reference's rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of features, float64."""

    mean: Tensor
    covariance: Tensor


class FeatureSums:
    """Sums of features and of their outer products: they add up over batches, parts and processes without error."""

    def __init__(self, dimensions: int, device: torch.device | str = "cpu") -> None:
        self._dimensions = dimensions
        # One tensor, so that ranks add it in one reduction: D rows of outer products, one of features, one of counts.
        self.packed = torch.zeros(dimensions + 2, dimensions, dtype=torch.float64, device=device)

    @property
    def count(self) -> int:
        """How many images were added."""
        return int(self.packed[-1, 0])

    def add(self, features_ND: Tensor) -> None:
        """Add a batch."""
        features = features_ND.to(self.packed)
        self.packed[:-2].addmm_(features.T, features)
        self.packed[-2] += features.sum(dim=0)
        self.packed[-1] += len(features)

    def merge(self, other: FeatureSums) -> None:
        """Add all that another one has seen."""
        self.packed += other.packed.to(self.packed.device)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance; ValueError for fewer than two images."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two images, not {self.count}")
        mean = self.packed[-2] / self.count
        covariance = (self.packed[:-2] - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Gaussian(mean, covariance)


class FrechetReference:
    """The Gaussian that others are measured against, its square root taken once."""

    def __init__(self, gaussian: Gaussian) -> None:
        self.mean = gaussian.mean.double()
        covariance = gaussian.covariance.double()
        self._trace = covariance.trace()
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        # What rounding leaves of the zero eigenvalues of a covariance that is not of full rank.
        noise = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(torch.float64).eps
        kept = eigenvalues > noise
        self.root_DR = vectors[:, kept] * eigenvalues[kept].sqrt()

    def distance(self, gaussian: Gaussian) -> float:
        """Distance of another Gaussian."""
        covariance = gaussian.covariance.to(self.mean)
        product = self.root_DR.T @ covariance @ self.root_DR
        overlap = _positive_roots(torch.linalg.eigvalsh(product))
        return self._combine(gaussian.mean.to(self.mean), covariance.trace(), overlap)

    def _combine(self, mean: Tensor, trace: Tensor, overlap: Tensor) -> float:
        distance = (mean - self.mean).square().sum() + trace + self._trace - 2 * overlap
        return float(distance.clamp_min(0))  # not a number stays so


class FrechetResampler:
    """Distances of the same images drawn again with other weights, without fitting each draw from the start.

    Seen through the reference's root, a draw's overlap term is the nuclear norm of its centred features; the smaller
    of the two Gram matrices has it, so few images of many dimensions are cheap too.
    """

    def __init__(self, reference: FrechetReference, features_ND: Tensor) -> None:
        features = features_ND.to(reference.mean)
        self._reference = reference
        self._centre = features.mean(dim=0)
        self._features = features - self._centre
        self._squares = self._features.square().sum(dim=1)
        self._seen_NR = self._features @ reference.root_DR

    def distance(self, counts_N: Tensor) -> float:
        """Distance when image i occurs counts[i] times."""
        weights = counts_N.to(self._squares)
        n = weights.sum()
        shift = weights @ self._features / n
        trace = (weights @ self._squares - n * shift.square().sum()) / (n - 1)
        drawn = weights > 0
        seen = self._seen_NR[drawn] - weights @ self._seen_NR / n
        seen *= weights[drawn].sqrt()[:, None]
        gram = seen @ seen.T if len(seen) < seen.shape[1] else seen.T @ seen
        overlap = _positive_roots(torch.linalg.eigvalsh(gram / (n - 1)))
        return self._reference._combine(self._centre + shift, trace, overlap)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Fréchet distance of two Gaussians."""
    return FrechetReference(second).distance(first)


def _positive_roots(eigenvalues: Tensor) -> Tensor:
    """Sum of square roots; rounding makes some of the zero eigenvalues negative."""
    return eigenvalues.clamp_min(0).sqrt().sum()
