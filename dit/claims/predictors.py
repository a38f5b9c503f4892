"""Compares two predictors of a metric: linear fits of its logarithm on log Gflops and on log parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

DRAWS = 4000
"""Joint draws of all variants."""


@dataclass(frozen=True, slots=True)
class Fit:
    """log metric = intercept + slope x log predictor, by least squares over the variants."""

    slope: float
    """Exponent of the power law: negative if the metric falls as the predictor grows."""
    intercept: float
    slope_low: float
    slope_high: float
    r2: float
    loo_rmse: float | None
    """Leave-one-out root mean square error in log units; None if it is undefined."""
    spearman: float
    """Spearman's rank correlation of metric and predictor."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both fits, and the difference in explained variance with its interval."""

    gflops: Fit
    parameters: Fit
    difference: float
    """R² with log Gflops minus R² with log parameters: positive if Gflops leave the smaller residual error."""
    low: float
    high: float
    rises: bool
    """Whether the metric rises with Gflops, at a level divided by the two ways to contradict the claim."""
    follows_parameters: bool
    """Whether parameters leave the smaller residual error, at the same level."""


def compare(
    gflops: Sequence[float], parameters: Sequence[float], logs: Vector, draws: NDArray[np.float64], confidence: float
) -> Comparison:
    """Fit and compare: `logs` [variants] are log metrics, `draws` [draws, variants] those of other seeds and samples.

    Both predictors must be positive.
    """
    # Both lines are fitted to the same draws, because their errors are correlated.
    log_gflops, log_parameters = np.log(np.asarray(gflops)), np.log(np.asarray(parameters))
    tail = (1 - confidence) / 2
    tails = [tail, 1 - tail]
    differences = _r2(log_gflops, draws) - _r2(log_parameters, draws)
    low, high = np.quantile(differences, tails)
    first, second = _fit(log_gflops, logs, draws, tails), _fit(log_parameters, logs, draws, tails)
    return Comparison(
        gflops=first,
        parameters=second,
        difference=first.r2 - second.r2,
        low=float(low),
        high=float(high),
        rises=bool(np.quantile(_slope(log_gflops, draws), tail / 2) > 0),
        follows_parameters=bool(first.r2 < second.r2 and np.quantile(differences, 1 - tail / 2) < 0),
    )


def _fit(x: Vector, y: Vector, draws: NDArray[np.float64], tails: list[float]) -> Fit:
    slope = float(_slope(x, y[None])[0])
    low, high = np.quantile(_slope(x, draws), tails)
    return Fit(
        slope=slope,
        intercept=float(y.mean() - slope * x.mean()),
        slope_low=float(low),
        slope_high=float(high),
        r2=float(_r2(x, y[None])[0]),
        loo_rmse=_leave_one_out(x, y, slope),
        spearman=float(_correlation(_ranks(x), _ranks(y)[None])[0]),
    )


def _slope(x: Vector, rows: NDArray[np.float64]) -> Vector:
    centred = x - x.mean()
    spread = centred @ centred
    slopes: Vector = rows @ centred / spread if spread else np.zeros(len(rows))
    return slopes


def _correlation(x: Vector, rows: NDArray[np.float64]) -> Vector:
    """Pearson's correlation of `x` [variants] with each row [draws, variants]; 0 if either is constant."""
    centred = x - x.mean()
    deviations = rows - rows.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred @ centred) * (deviations**2).sum(axis=1))
    correlation: Vector = np.divide(deviations @ centred, spread, out=np.zeros(len(rows)), where=spread > 0)
    return correlation


def _r2(x: Vector, rows: NDArray[np.float64]) -> Vector:
    return _correlation(x, rows) ** 2


def _leave_one_out(x: Vector, y: Vector, slope: float) -> float | None:
    """Leave-one-out error without refitting: the residual of a left-out point is its residual / (1 - leverage)."""
    centred = x - x.mean()
    spread = centred @ centred
    leverage = 1 / len(x) + (centred**2 / spread if spread else 0.0)
    if np.any(leverage > 1 - 1e-9):
        return None
    residuals = y - y.mean() - slope * centred
    return float(np.sqrt(np.mean((residuals / (1 - leverage)) ** 2)))


def _ranks(values: Vector) -> Vector:
    """Ranks from 0; equal values share their mean rank."""
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    ranks: Vector = below + (equal - 1) / 2
    return ranks
