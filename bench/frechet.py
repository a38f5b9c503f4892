"""Fréchet distance in 2048 dimensions: ours, torch-fidelity's, and the matrix square root of the papers' formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import torch

from bench.harness import Row
from bench.timing import seconds_per_call
from dit.metrics.frechet import Gaussian, frechet_distance

DIMENSIONS = 2048


def measure(side: str) -> dict[str, Any]:
    """Distances per second between two full-rank Gaussians, and the distance, which must be equal for all sides."""
    random = np.random.default_rng(0)
    first, second = (_gaussian(random, shift) for shift in (0.0, 0.1))
    calls = {"matrix square root": _square_root, "torch-fidelity": _torch_fidelity, "ours": _ours}
    results: list[float] = []
    seconds = seconds_per_call(lambda: results.append(calls[side](first, second)))
    return {"rate": 1 / seconds, "beside": {"distance": f"{results[-1]:.6f}"}}


def _gaussian(random: np.random.Generator, shift: float) -> tuple[np.ndarray, np.ndarray]:
    factor = random.standard_normal((DIMENSIONS, DIMENSIONS)) / DIMENSIONS**0.5
    return random.standard_normal(DIMENSIONS) * 0.1 + shift, factor @ factor.T


def _square_root(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    (m1, s1), (m2, s2) = first, second
    root = scipy.linalg.sqrtm(s1 @ s2).real
    return float(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root))


def _torch_fidelity(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    from dit.runtime.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    statistics = [{"mu": mean, "sigma": covariance} for mean, covariance in (first, second)]
    return float(fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"])


def _ours(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    return frechet_distance(*(Gaussian(*map(torch.from_numpy, gaussian)) for gaussian in (first, second)))


def rows() -> list[Row]:
    """One row of three sides."""
    sides = {side: {"side": side} for side in ("matrix square root", "torch-fidelity", "ours")}
    return [Row("Fréchet distance, 2048 dimensions", "distances/s", __name__, sides)]
