"""A study's finished results, read from the store: whole, of this configuration, or one line on what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dit.claims.verdicts import judge
from dit.errors import DitError, MismatchError, MissingError
from dit.storage import Store, read_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import MetricsRecord, TrainRecord, Verdict
from dit.study.variants import ModelSpec


@dataclass(frozen=True, slots=True)
class VariantResults:
    """One variant's training and its metrics at every evaluated step, in order."""

    spec: ModelSpec
    train: TrainRecord
    metrics: tuple[MetricsRecord, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """A complete study, in the order of its variants."""

    config: StudyConfig
    variants: tuple[VariantResults, ...]
    verdict: Verdict

    def rows(self) -> Iterator[tuple[VariantResults, MetricsRecord]]:
        """Every checkpoint's metrics, variant by variant."""
        for variant in self.variants:
            for record in variant.metrics:
                yield variant, record

    def last(self) -> Iterator[tuple[VariantResults, MetricsRecord]]:
        """Every variant's metrics at the step that the verdict is about."""
        return ((variant, record) for variant, record in self.rows() if record.step == self.verdict.step)


def load_results(config: StudyConfig, store: Store) -> Results:
    """Read all records of the study and judge the claims.

    Raises MissingError naming the first variant and step without a result, how many more there are and the command
    that makes it; MismatchError for a result of another configuration, or of another dataset's content.
    """
    missing: list[str] = []
    variants = []
    for spec in config.specs:
        train = read_record(store, layout.train_record(config, spec), TrainRecord)
        if train is None:
            missing.append(f"{spec.name} is not trained to its end; run: dit train STUDY --variant {spec.name}")
            continue
        _check(layout.train_record(config, spec), train.config_hash, config.training_hash(spec))
        if train.steps < config.train.steps:
            missing.append(
                f"{spec.name} is trained to step {train.steps} of {config.train.steps}; run: dit train STUDY --variant"
                f" {spec.name}"
            )
        metrics = [_metrics(config, store, spec, step, missing) for step in config.evaluation.at_steps]
        variants.append(VariantResults(spec, train, tuple(record for record in metrics if record)))
    if missing:
        more = f" ({len(missing) - 1} more results are missing)" if len(missing) > 1 else ""
        raise MissingError(f"study {config.study}: {missing[0]}{more}")
    results = tuple(variants)
    _check_content(results)
    verdict = judge(config.study, [record for variant in results for record in variant.metrics])
    return Results(config, results, verdict)


def _metrics(config: StudyConfig, store: Store, spec: ModelSpec, step: int, missing: list[str]) -> MetricsRecord | None:
    """One checkpoint's record; where there is none, the step that makes it joins `missing`."""
    key = layout.metrics(config, spec, step)
    record = read_record(store, key, MetricsRecord)
    if record is None:
        sampled = store.exists(f"{layout.samples(config, spec, step)}/{layout.MANIFEST}")
        state, command = ("evaluated", "evaluate") if sampled else ("sampled", "sample")
        missing.append(
            f"{spec.name} at step {step} is not {state}; run: dit {command} STUDY --variant {spec.name} --step {step}"
        )
        return None
    _check(key, record.config_hash, config.evaluation_hash(spec))
    if record.metric not in record.metrics:
        raise DitError(f"{key}: has no {record.metric}, its own primary metric; remove it and evaluate again")
    return record


def _check_content(variants: Sequence[VariantResults]) -> None:
    """All models must have been trained on the same shards, and measured beside them."""
    content = variants[0].train.dataset_content
    for variant in variants:
        used = [("trained on", variant.train.dataset_content)]
        used += [(f"at step {record.step} measured beside", record.dataset_content) for record in variant.metrics]
        for what, found in used:
            if found != content:
                raise MismatchError(
                    f"{variants[0].spec.name} was trained on shards {content}, {variant.spec.name} was {what} {found}:"
                    " their numbers cannot be compared; make both anew with one dataset, under another study name or"
                    " root"
                )


def _check(key: str, found: str, expected: str) -> None:
    if found != expected:
        raise MismatchError(
            f"{key}: was made by configuration {found}, this study's is {expected};"
            " use the study file that made it, or another study name or root"
        )
