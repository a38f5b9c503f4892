"""Fréchet distance between Gaussians fitted to features (Heusel et al. 2017, equation 6), in float64, on any device.

|m - m_r|^2 + tr S + tr S_r - 2 tr (S_r^1/2 S S_r^1/2)^1/2, by symmetric eigendecompositions: exact for covariances of
any rank, and faster than a matrix square root. Shapes: N images, D feature dimensions, R the reference's rank.

    reference = FrechetReference(real_sums.gaussian())
    reference.distance(sample_sums.gaussian())
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
    """Sums of features and of their outer products, which add up over batches, parts and processes."""

    def __init__(self, dimensions: int, device: torch.device | str = "cpu") -> None:
        self._dimensions = dimensions
        # One tensor, so that ranks add it in one reduction: D rows of outer products, one of features, one of counts.
        self.packed = torch.zeros(dimensions + 2, dimensions, dtype=torch.float64, device=device)

    @property
    def count(self) -> int:
        """Number of images added."""
        return int(self.packed[-1, 0])

    def add(self, features_ND: Tensor) -> None:
        """Add the features of a batch."""
        # float64 before the product: a covariance is a small difference of large sums.
        features = features_ND.to(self.packed)
        self.packed[:-2].addmm_(features.T, features)
        self.packed[-2] += features.sum(dim=0)
        self.packed[-1] += len(features)

    def merge(self, other: FeatureSums) -> None:
        """Add the sums of another part."""
        self.packed += other.packed.to(self.packed.device)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance.

        Raises ValueError for fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two images, not {self.count}")
        mean = self.packed[-2] / self.count
        covariance = (self.packed[:-2] - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Gaussian(mean, covariance)


class FrechetReference:
    """The Gaussian that others are measured against; its square root is computed once."""

    def __init__(self, gaussian: Gaussian) -> None:
        self.mean = gaussian.mean.double()
        covariance = gaussian.covariance.double()
        self._trace = covariance.trace()
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        # Rounding turns the zero eigenvalues of a rank-deficient covariance into small numbers; they are dropped.
        noise = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(torch.float64).eps
        kept = eigenvalues > noise
        # L [D, R] with S_r = L L^T. It serves as S_r^1/2 above: L^T S L has the eigenvalues of S_r^1/2 S S_r^1/2.
        self.root_DR = vectors[:, kept] * eigenvalues[kept].sqrt()

    def distance(self, gaussian: Gaussian) -> float:
        """Squared Fréchet distance of another Gaussian, as FID reports it."""
        covariance = gaussian.covariance.to(self.mean)
        product = self.root_DR.T @ covariance @ self.root_DR
        overlap = _positive_roots(torch.linalg.eigvalsh(product))
        return self._combine(gaussian.mean.to(self.mean), covariance.trace(), overlap)

    def _combine(self, mean: Tensor, trace: Tensor, overlap: Tensor) -> float:
        distance = (mean - self.mean).square().sum() + trace + self._trace - 2 * overlap
        # Rounding can make the distance of equal Gaussians negative; NaN stays NaN.
        return float(distance.clamp_min(0))


class FrechetResampler:
    """Distances of bootstrap draws of the same images, without fitting a covariance [D, D] to each draw."""

    def __init__(self, reference: FrechetReference, features_ND: Tensor) -> None:
        features = features_ND.to(reference.mean)
        self._reference = reference
        self._centre = features.mean(dim=0)
        self._features = features - self._centre
        self._squares = self._features.square().sum(dim=1)
        self._projected_NR = self._features @ reference.root_DR

    def distance(self, counts_N: Tensor) -> float:
        """Distance when image i occurs counts[i] times; counts [N]."""
        weights = counts_N.to(self._squares)
        n = weights.sum()
        shift = weights @ self._features / n
        # tr S of the draw = (sum of w |x|^2 - n |shift|^2) / (n - 1), with x and shift relative to the centre.
        trace = (weights @ self._squares - n * shift.square().sum()) / (n - 1)
        drawn = weights > 0
        rows_NR = self._projected_NR[drawn] - weights @ self._projected_NR / n
        rows_NR *= weights[drawn].sqrt()[:, None]
        # L^T S L = rows^T rows / (n - 1). rows rows^T has the same nonzero eigenvalues, so the smaller one is used.
        gram = rows_NR @ rows_NR.T if len(rows_NR) < rows_NR.shape[1] else rows_NR.T @ rows_NR
        overlap = _positive_roots(torch.linalg.eigvalsh(gram / (n - 1)))
        return self._reference._combine(self._centre + shift, trace, overlap)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Fréchet distance of two Gaussians."""
    return FrechetReference(second).distance(first)


def _positive_roots(eigenvalues: Tensor) -> Tensor:
    """Sum of square roots; rounding makes some of the zero eigenvalues negative."""
    return eigenvalues.clamp_min(0).sqrt().sum()
