"""Reads the results of a complete study from the store."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from dit.claims.judged import estimates_by_step
from dit.claims.notes import left_out, notes
from dit.claims.two_level import GivenSpread
from dit.claims.verdicts import judge
from dit.errors import MismatchError, MissingError, UnhealthyError
from dit.health.summary import headline, readings, stopped_by
from dit.results.protocols import OtherResult, other_results
from dit.results.stages import EVALUATE, Work, training
from dit.results.state import Finding, look, missing_line
from dit.storage import Store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import Estimate, HealthEvent, MetricsRecord, TrainRecord, Verdict
from dit.study.runs import Run
from dit.study.variants import ModelSpec


@dataclass(frozen=True, slots=True)
class VariantResults:
    """One run's training and its metrics at every evaluated step, in order."""

    run: Run
    train: TrainRecord
    metrics: tuple[MetricsRecord, ...]

    @property
    def spec(self) -> ModelSpec:
        """The architecture."""
        return self.run.spec


@dataclass(frozen=True, slots=True)
class Results:
    """A complete study, in the order of its runs. Those that a health check stopped are left out."""

    config: StudyConfig
    variants: tuple[VariantResults, ...]
    """One for each run: a variant has as many as the study has seeds."""
    verdict: Verdict
    estimates: Mapping[tuple[str, int], Estimate]
    """(variant, step) -> the primary metric over the variant's seeds."""
    others: tuple[OtherResult, ...] = ()
    """Metrics of the same models under other sampling protocols; no claim is judged by them."""

    @property
    def over_seeds(self) -> bool:
        """Whether the intervals of variants cover the noise of training, so that they differ from those of runs."""
        return self.config.evaluation.seed_spread is not None or any(
            len(own.seeds) > 1 for own in self.verdict.variants
        )

    def rows(self) -> Iterator[tuple[VariantResults, MetricsRecord]]:
        """Every checkpoint's metrics, run by run."""
        for variant in self.variants:
            for record in variant.metrics:
                yield variant, record

    def last(self) -> Iterator[tuple[VariantResults, MetricsRecord]]:
        """Every run's metrics at the verdict's step."""
        return ((variant, record) for variant, record in self.rows() if record.step == self.verdict.step)


def load_results(config: StudyConfig, store: Store) -> Results:
    """Read all records of the study and judge the claims.

    A run that is not complete because a health check stopped it is left out, and a note names it.

    Raises UnhealthyError when health checks stopped all runs.
    Raises MissingError when results are missing: it names the first, the command that makes it, and their number.
    Raises MismatchError when a result has another configuration or another content of the dataset.
    """
    work = Work(config, store, compare_decoder=False)
    # Only records are needed: the checkpoints themselves may have been removed.
    findings = {
        run: [look(work, output) for output in (training(work, run), *EVALUATE.outputs(work, run))]
        for run in config.runs
    }
    stopped = _stopped(config, store, findings)
    findings = {run: row for run, row in findings.items() if run not in stopped}
    missing = [finding for row in findings.values() for finding in row if not finding.complete]
    if missing:
        more = f" ({len(missing) - 1} more results are missing)" if len(missing) > 1 else ""
        raise MissingError(
            f"study {config.study} is not complete below {store.place()}: {missing_line(work, missing[0])}{more}"
        )
    if not findings:
        raise UnhealthyError(f"no variant is complete: {headline(readings(config, store))}")
    results = tuple(VariantResults(run, *_records(run, row)) for run, row in findings.items())
    _check_content(results)
    beside = (*(left_out(config, event) for event in stopped.values()), *notes(config))
    records = [record for variant in results for record in variant.metrics]
    given = _given_spread(config)
    verdict = judge(config.study, records, beside, given)
    others = _others(config, store, _content(results[0]))
    return Results(config, results, verdict, estimates_by_step(records, given), others)


def _given_spread(config: StudyConfig) -> GivenSpread | None:
    evaluation = config.evaluation
    if evaluation.seed_spread is None:
        return None
    freedom = evaluation.seed_spread_degrees_of_freedom
    return GivenSpread(evaluation.seed_spread, math.inf if freedom is None else freedom)


def _stopped(
    config: StudyConfig, store: Store, findings: Mapping[Run, Sequence[Finding[Any]]]
) -> dict[Run, HealthEvent]:
    """The runs that are not complete because a health check stopped them, with its reading."""
    incomplete = (run for run, row in findings.items() if not all(finding.complete for finding in row))
    events = {run: stopped_by(config, store, run) for run in incomplete}
    return {run: event for run, event in events.items() if event is not None}


def _others(config: StudyConfig, store: Store, content: str) -> tuple[OtherResult, ...]:
    """Raises MismatchError for one that was measured beside other shards."""
    others = tuple(other_results(config, store))
    for other in others:
        if other.record.dataset_content != content:
            key = layout.metrics(other.config, other.run, other.record.step)
            raise MismatchError(
                f"{store.url}/{key}: measured beside shards {other.record.dataset_content}, the models were trained on"
                f" {content}; remove it and its samples"
            )
    return others


def _records(run: Run, findings: Sequence[Finding[Any]]) -> tuple[TrainRecord, tuple[MetricsRecord, ...]]:
    trained, *measured = (cast(Any, finding.record) for finding in findings)
    # Records of an earlier version have no seed.
    return trained, tuple(record.model_copy(update={"train_seed": run.seed}) for record in measured)


def _content(variant: VariantResults) -> str:
    """The shards that a variant was trained on, or if it was imported, beside which it was measured."""
    return variant.metrics[0].dataset_content if variant.train.imported else variant.train.dataset_content


def _check_content(variants: Sequence[VariantResults]) -> None:
    """Raises MismatchError unless all models were trained on the same shards and measured beside them."""
    content = _content(variants[0])
    for variant in variants:
        used = [] if variant.train.imported else [("trained on", variant.train.dataset_content)]
        used += [(f"at step {record.step} measured beside", record.dataset_content) for record in variant.metrics]
        for what, shards in used:
            if shards != content:
                raise MismatchError(
                    f"{variants[0].run.name} was trained on shards {content}, {variant.run.name} was {what} {shards}:"
                    " their metrics cannot be compared; make both again with one dataset, under another study name"
                    " or root"
                )
