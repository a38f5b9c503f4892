"""The variants at the judged step, over their seeds: values, intervals, and which can be compared. Torch-free."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dit.claims import metric_names
from dit.claims.two_level import GivenSpread, Runs
from dit.console.formatting import format_number
from dit.study.records import Estimate, MetricsRecord, VariantEstimate
from dit.study.variants import ModelSpec, resolve

NOISE_SHARE = 0.8
"""A model whose interval reaches above this share of the noise floor has learned too little to be compared."""
Groups = Mapping[str, Sequence[MetricsRecord]]
"""Variant -> its records, by seed."""


@dataclass(frozen=True, slots=True)
class JudgedVariant:
    """A variant and its primary metric over its runs."""

    spec: ModelSpec
    records: tuple[MetricsRecord, ...]
    """Of its runs, by seed."""
    estimate: Estimate
    problem: str | None
    """Why it cannot support a verdict; None if it can."""

    @property
    def first(self) -> MetricsRecord:
        """One of its records, for what all of them share: size, compute, noise floor and the name of the metric."""
        return self.records[0]

    @property
    def is_noise(self) -> bool:
        """Whether its interval reaches the noise floor."""
        return _is_noise(self.estimate, self.first)

    @property
    def numbers(self) -> dict[str, object]:
        """Its values for `verdict.json`."""
        own = self.estimate
        return {
            "variant": self.spec.name,
            "value": own.value,
            "low": own.low,
            "high": own.high,
            "confidence": self.first.confidence,
            "seeds": [record.train_seed for record in self.records],
        }

    def summary(self) -> VariantEstimate:
        """The estimate with the seeds behind it."""
        seeds = tuple(record.train_seed for record in self.records)
        return VariantEstimate(**self.estimate.model_dump(), variant=self.spec.name, seeds=seeds)


@dataclass(frozen=True, slots=True)
class Judged:
    """All variants, by family, patch and size, and the runs of those that can be compared."""

    variants: tuple[JudgedVariant, ...]
    runs: Runs | None
    """None if no variant can be compared."""


def primary(record: MetricsRecord) -> Estimate:
    """The value and interval of the study's primary metric, which the claims are about; one run, sampling alone."""
    return record.metrics[record.metric]


def judged(records: Sequence[MetricsRecord], given: GivenSpread | None) -> Judged:
    """The variants of these records, all of one step."""
    groups = _by_variant(records)
    defects = {name: defect for name, rows in groups.items() if (defect := _defect(rows))}
    estimates = _estimates(groups, [name for name in groups if name not in defects], given)
    problems = {**{name: _noise(rows, estimates[name]) for name, rows in groups.items()}, **defects}
    good = [name for name in groups if problems[name] is None]
    # The spread between seeds is pooled again without models that have not learned: they hardly differ.
    estimates |= _estimates(groups, good, given)
    variants = tuple(
        JudgedVariant(resolve(name), tuple(rows), estimates[name], problems[name]) for name, rows in groups.items()
    )
    return Judged(variants, _runs(groups, good, given))


def estimates_by_step(records: Iterable[MetricsRecord], given: GivenSpread | None) -> dict[tuple[str, int], Estimate]:
    """(variant, step) -> the primary metric over the variant's seeds."""
    steps: dict[int, list[MetricsRecord]] = defaultdict(list)
    for record in records:
        steps[record.step].append(record)
    return {
        (variant.spec.name, step): variant.estimate
        for step, rows in steps.items()
        for variant in judged(rows, given).variants
    }


def _by_variant(records: Sequence[MetricsRecord]) -> dict[str, list[MetricsRecord]]:
    def order(record: MetricsRecord) -> tuple[str, int, int, int]:
        spec = resolve(record.variant)
        return spec.family, spec.patch, spec.size_index, record.train_seed

    groups: dict[str, list[MetricsRecord]] = defaultdict(list)
    for record in sorted(records, key=order):
        groups[record.variant].append(record)
    return dict(groups)


def _runs(groups: Groups, names: Sequence[str], given: GivenSpread | None) -> Runs | None:
    return Runs.of([record for name in names for record in groups[name]], given) if names else None


def _estimates(groups: Groups, names: Sequence[str], given: GivenSpread | None) -> dict[str, Estimate]:
    """The named variants' estimates over their runs; of all others, that of their worst run."""
    runs = _runs(groups, names, given)
    worst = {name: max(map(primary, rows), key=lambda own: _sortable(own.value)) for name, rows in groups.items()}
    return worst | ({name: runs.estimate(name) for name in names} if runs else {})


def _sortable(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _defect(rows: Sequence[MetricsRecord]) -> str | None:
    """Why the logarithm or the uncertainty of a variant's metric is not known; None if both are."""
    for record in rows:
        estimate, seed = primary(record), f" (seed {record.train_seed})" if len(rows) > 1 else ""
        shown = (
            f"{record.variant}{seed} has {metric_names.metric_name(record.metric)} {metric_names.interval(estimate)}"
        )
        if not all(math.isfinite(value) and value > 0 for value in (estimate.value, estimate.low, estimate.high)):
            return f"{shown}, which is not a positive number"
        if len(record.replicates) < 2:
            return f"{shown} without bootstrap replicates, so its uncertainty is unknown"
    return None


def _noise(rows: Sequence[MetricsRecord], estimate: Estimate) -> str | None:
    first = rows[0]
    if not _is_noise(estimate, first):
        return None
    return (
        f"{first.variant} is no better than noise: {metric_names.metric_name(first.metric)}"
        f" {metric_names.interval(estimate)} reaches above {format_number(NOISE_SHARE * first.noise_floor)},"
        f" {NOISE_SHARE:.0%} of the noise floor {format_number(first.noise_floor)}"
    )


def _is_noise(estimate: Estimate, record: MetricsRecord) -> bool:
    return not estimate.high <= NOISE_SHARE * record.noise_floor
