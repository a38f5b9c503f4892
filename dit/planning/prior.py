"""What is known about a study before it runs: curves of its metric over steps, and their spreads. Torch-free.

published.py reads it from the paper's numbers, earlier.py from the records of a study that has run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Range:
    """Where a metric is expected, from `low` to `high`; equal where one value is known."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """The geometric mean of both ends."""
        return math.sqrt(self.low * self.high)


@dataclass(frozen=True, slots=True)
class Curve:
    """A model's metric over training steps: a power law between each two points that are known."""

    points: Sequence[tuple[int, Range]]
    """(step, metric), in the order of the steps."""

    def at(self, step: int) -> Range | None:
        """The metric at a step, on straight lines of log metric over log step; None outside of the points."""
        for known, value in self.points:
            if step == known:
                return value
        for (before, first), (after, last) in pairwise(self.points):
            if before < step < after:
                share = math.log(step / before) / math.log(after / before)
                return Range(_between(first.low, last.low, share), _between(first.high, last.high, share))
        return None


@dataclass(frozen=True, slots=True)
class Spread:
    """How far results of the same model lie apart: a standard deviation of the metric's logarithm."""

    log_sd: float
    degrees: int
    """Degrees of freedom of the estimate."""
    images: int | None
    """Images in each set of samples that was measured; None if the spread has no noise of sampling in it."""
    source: str
    """Where it was read, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known about the variants of a study."""

    curves: Mapping[str, Curve]
    """Variant -> its curve; variants of which nothing is known are not among them."""
    seeds: Spread | None
    """Between trainings that differ in their seed, the noise of sampling included; None if it is not known."""
    sampling: Spread
    """Between sets of samples of one model."""
    bias: float
    """Metric x images: what the metric of N images lies above that of many is this divided by N; 0 if not known."""
    noise_floor: float
    source: str
    """A sentence for people."""
    notes: tuple[str, ...] = ()
    limits: str = ""
    """Sentences on why the curves are not extended."""

    def reach(self, variants: Sequence[str]) -> tuple[int, int]:
        """The first and the last step at which all of these variants are known; the last is less if there is none."""
        ends = [(curve.points[0][0], curve.points[-1][0]) for name in variants if (curve := self.curves.get(name))]
        if len(ends) < len(variants) or not ends:
            return 1, 0
        return max(first for first, _ in ends), min(last for _, last in ends)

    def known_at(self, step: int, variants: Sequence[str]) -> bool:
        """Whether the curve of some of these variants reaches this step."""
        return any(first <= step <= last for first, last in (self.reach([name]) for name in variants))

    def expected(self, variant: str, step: int, images: int) -> Range | None:
        """The metric of a variant with this many images; None where its curve does not reach."""
        curve = self.curves.get(variant)
        value = curve.at(step) if curve else None
        if value is None:
            return None
        # A Fréchet distance is too large by an amount that falls as 1 / images (Chong & Forsyth 2020, section 3).
        bias = self.bias * (1 / images - 1 / _count(self.sampling))
        return Range(value.low + bias, value.high + bias)

    def sampling_sd(self, images: int | None) -> float:
        """Standard deviation of the log metric between sets of this many images; 0 for None."""
        return 0.0 if images is None else self.sampling.log_sd * math.sqrt(_count(self.sampling) / images)

    @property
    def seed_sd(self) -> float:
        """Standard deviation of the log metric between seeds, without the noise of sampling; 0 if it is not known."""
        if self.seeds is None:
            return 0.0
        return math.sqrt(max(self.seeds.log_sd**2 - self.sampling_sd(self.seeds.images) ** 2, 0.0))

    def run_sd(self, images: int) -> float:
        """Standard deviation of the log metric of one run: of its training's seed, and of this many images."""
        return math.hypot(self.seed_sd, self.sampling_sd(images))


def pooled(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Pooled standard deviation of the groups' logarithms, with its degrees of freedom; (0, 0) without any.

    Groups of one value have none.
    """
    squares, degrees = 0.0, 0
    for group in groups:
        logs = [math.log(value) for value in group]
        mean = sum(logs) / len(logs)
        squares += sum((value - mean) ** 2 for value in logs)
        degrees += len(logs) - 1
    return (math.sqrt(squares / degrees), degrees) if degrees else (0.0, 0)


def _count(sampling: Spread) -> int:
    assert sampling.images is not None
    return sampling.images


def _between(first: float, last: float, share: float) -> float:
    return first * math.pow(last / first, share)
