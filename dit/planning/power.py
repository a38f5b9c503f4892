"""How probable each verdict is, from what is expected: a simulation of many studies. Torch-free.

A simulated study draws one mean per variant, of `seeds` runs, and an estimate of their spread. Then it judges them as
docs/plan.md describes. All numbers are natural logarithms of the metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from dit.planning.prior import Range

Matrix = NDArray[np.float64]

STUDIES = 4000
"""Simulated studies: a probability of 90 % has a standard error of 0.5 %."""
JUDGED = 400
"""Of them, those whose claim 3 is judged, by `RESAMPLES` draws each."""
RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Trial:
    """The design of a study: what decides how precise its means are."""

    log_sd: float
    """Of one run."""
    seeds: int
    degrees: int
    """Of the estimate of `log_sd` with which the study is judged."""
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class Outcome:
    """Probabilities of a claim's verdicts; what is missing to 1 stays undetermined."""

    supported: float
    contradicted: float


@dataclass(frozen=True, slots=True)
class Simulated:
    """The results of many studies of the same design."""

    means_SV: Matrix
    """Log metric of every study and variant, mean over seeds."""
    error_S: Matrix
    """Standard error of these means, as each study estimates it."""
    trial: Trial


def simulate(expected: Sequence[Range], trial: Trial) -> Simulated:
    """The results of `STUDIES` studies, from a fixed seed, so that a plan can be repeated.

    Where a variant's metric is a range, each study has its truth somewhere in it, for all variants at the same share.
    """
    random = np.random.default_rng(0)
    low, high = (np.log([getattr(value, end) for value in expected]) for end in ("low", "high"))
    share = random.random((STUDIES, 1))
    own_error = trial.log_sd / np.sqrt(trial.seeds)
    means = low + share * (high - low) + own_error * random.standard_normal((STUDIES, len(expected)))
    estimate = own_error * np.sqrt(random.chisquare(trial.degrees, STUDIES) / trial.degrees)
    return Simulated(means, estimate, trial)


def order_outcome(simulated: Simulated, pairs: Sequence[tuple[int, int]]) -> Outcome:
    """A claim that in each pair of variants (better, worse) the first has the lower metric.

    A pair is decided when the difference of its log means is beyond Student's t times its standard error. Support needs
    every pair (Berger 1982); one reversed pair contradicts, so it is tested at a level divided by the number of pairs.
    """
    better, worse = np.array(pairs).T
    error_S = np.sqrt(2) * simulated.error_S
    differences = (simulated.means_SV[:, worse] - simulated.means_SV[:, better]) / error_S[:, None]
    trial = simulated.trial
    stricter = 1 - (1 - trial.confidence) / len(pairs)
    least, most = (float(stdtrit(trial.degrees, (1 + level) / 2)) for level in (trial.confidence, stricter))
    supported, reversed_ = (differences > least).all(axis=1), (differences < -most).any(axis=1)
    return Outcome(float(supported.mean()), float(reversed_.mean()))


def compute_outcome(simulated: Simulated, gflops: Sequence[float], parameters: Sequence[float]) -> Outcome:
    """Claim 3: log metric falls with log Gflops, and follows them more closely than log parameters (by R²).

    Both intervals come from draws of the means with their errors, Student's t.
    """
    trial, studies = simulated.trial, slice(0, JUDGED)
    random = np.random.default_rng(1)
    means, error = simulated.means_SV[studies], simulated.error_S[studies]
    noise = random.standard_t(trial.degrees, (JUDGED, RESAMPLES, means.shape[1]))
    draws = means[:, None, :] + error[:, None, None] * noise
    on_gflops, on_parameters = (_correlation(np.log(x), draws) for x in (gflops, parameters))
    tails = [(1 - trial.confidence) / 2, (1 + trial.confidence) / 2]
    low, high = np.quantile(on_gflops**2 - on_parameters**2, tails, axis=1)
    # A slope has the sign of its correlation.
    slope_low, slope_high = np.quantile(on_gflops, tails, axis=1)
    supported = (low > 0) & (slope_high < 0)
    contradicted = (slope_low > 0) | (high < 0)
    return Outcome(float(supported.mean()), float(contradicted.mean()))


def _correlation(x: Matrix, draws: Matrix) -> Matrix:
    """Pearson's correlation of `x` [V] with the last axis of `draws` [..., V]; 0 where either is constant."""
    centred = x - x.mean()
    deviations = draws - draws.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred @ centred) * (deviations**2).sum(axis=-1))
    return cast(Matrix, np.divide(deviations @ centred, spread, out=np.zeros_like(spread), where=spread > 0))
