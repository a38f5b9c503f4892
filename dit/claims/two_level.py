"""Two-level intervals: how far the log of a metric differs between training seeds, and between sets of samples.

    runs = Runs.of(records)                     # every run at one step
    runs.estimate("mini-S/2")                   # value and interval, in the metric's unit
    runs.ratio(better="mini-B/2", worse="mini-S/2", confidence=0.95)

A run's log metric is modelled as variant + seed + (variant x seed) + sampling error (a two-way layout of one run per
cell; Searle, Casella & McCulloch 1992, section 4.3). docs/verdicts.md has the formulas. Shapes: n runs, V variants,
B bootstrap replicates. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from dit.study.records import Estimate, MetricsRecord

Array = NDArray[np.float64]

SMALLEST_SHARE = 0.01
"""Replicates below this share of the value are raised to it, because centred replicates can be negative."""


@dataclass(frozen=True, slots=True)
class GivenSpread:
    """Standard deviation between training seeds of the log metric, from a publication or an earlier study."""

    value: float
    degrees_of_freedom: float = math.inf


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean square between runs, on the log scale: seeds and the runs' own sampling noise."""

    observed: float
    """The mean square of the runs' values."""
    sampling: float
    """The part that sampling noise contributes, from the same mean square of bootstrap replicates."""
    freedom: float
    """Degrees of freedom of `observed`."""

    @property
    def seed_variance(self) -> float:
        """The variance between seeds alone; 0 if sampling noise explains all of it."""
        return max(0.0, self.observed - self.sampling)


@dataclass(frozen=True)
class Runs:
    """The log metrics of runs at one step, and their bootstrap replicates, which are paired over runs.

    Replicate b of every run is from the same draw of image numbers, and image i has the same noise and label in every
    run. So the covariance over b of two runs' replicates is that of their sampling errors.
    """

    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    """Of each run, like `variants`."""
    logs: Array
    """Log metric of each run, [n]."""
    deviations: Array
    """Log replicates less their mean, [n, B]."""
    confidence: float
    given: GivenSpread | None
    records: tuple[MetricsRecord, ...]

    @classmethod
    def of(cls, records: Iterable[MetricsRecord], given: GivenSpread | None = None) -> Runs:
        """The runs of these records of one step. Their metrics must be positive; all need equally many replicates."""
        rows = tuple(records)
        values = [record.metrics[record.metric].value for record in rows]
        replicates = [
            np.log(np.maximum(np.asarray(record.replicates, dtype=np.float64), SMALLEST_SHARE * value))
            for record, value in zip(rows, values, strict=True)
        ]
        stacked = np.stack(replicates)
        return cls(
            variants=tuple(record.variant for record in rows),
            seeds=tuple(record.train_seed for record in rows),
            logs=np.log(np.asarray(values, dtype=np.float64)),
            deviations=stacked - stacked.mean(axis=1, keepdims=True),
            confidence=rows[0].confidence,
            given=given,
            records=rows,
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The variants, each once, in order."""
        return tuple(dict.fromkeys(self.variants))

    @cached_property
    def several(self) -> bool:
        """Whether some variant was trained with several seeds, so that their spread is known."""
        return len(self.variants) > len(self.names)

    @property
    def covers_seeds(self) -> bool:
        """Whether the intervals cover the noise of training."""
        return self.several or self.given is not None

    def estimate(self, variant: str) -> Estimate:
        """The mean over seeds of the log metric, with its interval, both in the metric's unit."""
        if not self.covers_seeds:
            record = self.records[self.variants.index(variant)]
            return record.metrics[record.metric]
        weights = self._own_mean(self.names.index(variant))
        return self._estimate(weights, self.within, self.confidence)

    def ratio(self, better: str, worse: str, confidence: float) -> Estimate:
        """The worse variant's metric divided by the better one's, from runs and replicates that are paired."""
        weights = self.weights[self.names.index(worse)] - self.weights[self.names.index(better)]
        return self._estimate(weights, self.residual if self.covers_seeds else None, confidence)

    def draws(self, count: int, seed: int = 0) -> Array:
        """Draws [count, V] of the variants' mean log metrics: other seeds, and within them other samples.

        From a fixed seed, so that a verdict can be reproduced.
        """
        random = np.random.default_rng(seed)
        replicates = self.deviations.shape[1]
        if not self.covers_seeds:
            # One run per variant: each has its own draw, as if the variants' sampling errors were independent.
            own = [row[random.integers(replicates, size=count)] for row in self.deviations]
            return np.asarray(self.logs + np.stack(own, axis=1))
        spread = self.residual
        # The observed mean square is itself uncertain: chi-squared with its degrees of freedom. Drawing it makes the
        # draws of every contrast those of Student's t.
        scale = spread.freedom / random.chisquare(spread.freedom, count) if math.isfinite(spread.freedom) else 1.0
        deviation = np.sqrt(np.maximum(0.0, spread.observed * scale - spread.sampling) * np.ones(count))
        root = np.linalg.cholesky(self.weights @ self.weights.T)
        seeds = deviation[:, None] * (random.standard_normal((count, len(root))) @ root.T)
        samples = (self.weights @ self.deviations).T[random.integers(replicates, size=count)]
        return np.asarray(self.weights @ self.logs + seeds + samples)

    @cached_property
    def weights(self) -> Array:
        """The runs' weights in each variant's mean, [V, n]: least squares, where seeds have an effect on all variants.

        With the same seeds for all variants this is the plain mean. A missing run is made up for by the seed's effect.
        """
        if not self._crossed:
            return np.stack([self._own_mean(number) for number in range(len(self.names))])
        # Effects of seeds that add up to zero: a variant's coefficient is then its mean over all seeds.
        seeds = self._seed_columns
        effects = seeds[:, :-1] - seeds[:, -1:]
        return np.asarray(np.linalg.pinv(np.hstack([self._variant_columns, effects]))[: len(self.names)])

    @cached_property
    def within(self) -> Spread:
        """Between the runs of a variant, pooled over variants: for the interval of one variant."""
        if not self.several:
            assert self.given is not None
            return Spread(self.given.value**2, 0.0, self.given.degrees_of_freedom)
        observed, sampling, freedom = self._squares(self._variant_columns)
        if not self._crossed:
            return Spread(observed / freedom, sampling / freedom, freedom)
        # An effect of the seed on all variants makes the variants' spreads depend on each other, so there are fewer
        # degrees of freedom than runs suggest (Satterthwaite 1946).
        rest, _, rest_freedom = self._squares(self._both_columns)
        common, common_freedom = max(observed - rest, 0.0), freedom - rest_freedom
        parts = common**2 / common_freedom + (rest**2 / rest_freedom if rest_freedom else 0.0)
        fewer = observed**2 / parts if parts > 0 else freedom
        return Spread(observed / freedom, sampling / freedom, min(fewer, freedom))

    @cached_property
    def residual(self) -> Spread:
        """Between runs, without what a seed does to all variants alike: for differences of variants."""
        if not self._crossed:
            return self.within
        observed, sampling, freedom = self._squares(self._both_columns)
        return Spread(observed / freedom, sampling / freedom, freedom) if freedom else self.within

    def _estimate(self, weights: Array, spread: Spread | None, confidence: float) -> Estimate:
        centre = float(weights @ self.logs)
        half = self._half_width(weights, spread, confidence)
        return Estimate(value=math.exp(centre), low=math.exp(centre - half), high=math.exp(centre + half))

    def _half_width(self, weights: Array, spread: Spread | None, confidence: float) -> float:
        """Student's t times the standard error of a weighted sum of runs; Satterthwaite's degrees of freedom."""
        share = float(weights @ weights)
        sampling = float((weights @ self.deviations).var(ddof=1))
        replicates = self.deviations.shape[1] - 1
        variance, parts = sampling, sampling**2 / replicates
        if spread is not None:
            variance += spread.seed_variance * share
            parts += (spread.observed * share) ** 2 / spread.freedom
        freedom = variance**2 / parts if parts > 0 else math.inf
        return float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(variance)

    def _squares(self, columns: Array) -> tuple[float, float, int]:
        """Sums of squares that `columns` [n, k] leave of values and of replicates (mean), and degrees of freedom."""
        rest = np.eye(len(self.logs)) - columns @ np.linalg.pinv(columns)
        freedom = len(self.logs) - int(np.linalg.matrix_rank(columns))
        sampling = float(((rest @ self.deviations) ** 2).sum() / (self.deviations.shape[1] - 1))
        return float(((rest @ self.logs) ** 2).sum()), sampling, freedom

    def _own_mean(self, number: int) -> Array:
        column = self._variant_columns[:, number]
        return np.asarray(column / column.sum())

    @cached_property
    def _crossed(self) -> bool:
        """Whether effects of variants and of seeds can be told apart."""
        needed = len(self.names) + self._seed_columns.shape[1] - 1
        return self._seed_columns.shape[1] > 1 and int(np.linalg.matrix_rank(self._both_columns)) == needed

    @cached_property
    def _variant_columns(self) -> Array:
        return _indicators(self.variants)

    @cached_property
    def _seed_columns(self) -> Array:
        return _indicators(self.seeds)

    @cached_property
    def _both_columns(self) -> Array:
        return np.hstack([self._variant_columns, self._seed_columns])


def _indicators(labels: Sequence[object]) -> Array:
    """A column for each label, with 1 in the rows that have it."""
    different = list(dict.fromkeys(labels))
    return np.array([[float(label == one) for one in different] for label in labels])
