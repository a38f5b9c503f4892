"""Evaluate: sample sets into metrics with intervals, one record for each checkpoint.

dit evaluate configs/digits.yaml --variant mini-S/2 --step 500
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from dit.console import progress, say
from dit.console.formatting import format_number
from dit.errors import ConfigError
from dit.metrics.inputs import find_evaluation_files
from dit.results.stages import EVALUATE, Work
from dit.results.stages import metrics as metrics_of
from dit.results.state import look, require, say_complete
from dit.results.study_copy import keep_study
from dit.sampling.sets import PART_IMAGES, Images, SampleSet
from dit.storage import Store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import Estimate, MetricsRecord, SampleSetManifest
from dit.study.runs import Run

if TYPE_CHECKING:
    from dit.metrics.extractors import Features
    from dit.metrics.setup import EvaluationSetup
    from dit.runtime.distributed import Ranks
    from dit.tracking import Tracker


def run(config: StudyConfig, store: Store, variant: str, step: int | None = None) -> list[MetricsRecord]:
    """Measure the samples of one checkpoint, or of every evaluated one without `step`; their records.

    Raises MissingError when samples, dataset, extractor weights or reference are missing, MismatchError when they have
    another configuration, decoder or source, ConfigError for a set of one sample, InputError for a reference file that
    is not valid, DataError when another file is damaged.
    """
    run, work = config.run(variant), Work(config, store)
    steps = config.evaluation.at_steps if step is None else (step,)
    pending = [number for number in steps if not look(work, metrics_of(work, run, number)).complete]
    if pending:
        _evaluate(work, run, pending)
    else:
        say_complete(EVALUATE, run)
    return [require(work, metrics_of(work, run, number)) for number in steps]


def check_files(config: StudyConfig, store: Store) -> None:
    """Check the files that an evaluation needs, so that a study does not fail on them after days of training.

    Raises MissingError or MismatchError for a missing or wrong file, InputError when the reference is not valid.
    """
    find_evaluation_files(config, store)


def _evaluate(work: Work, run: Run, steps: list[int]) -> None:
    config, store = work.config, work.store
    sets = [SampleSet(work, run, step) for step in steps]
    manifests = [require(work, sample_set.output) for sample_set in sets]
    if config.sampling.num_samples < 2:
        raise ConfigError("sampling.num_samples=1: a distance between distributions needs two samples or more")
    store.check_writable()
    keep_study(config, store)
    # Imported here because they take seconds, and a complete or unready study does not need them.
    from dit.health.ranks import agree, study_facts
    from dit.metrics.reference_cache import ReferenceFolder
    from dit.metrics.setup import find_inputs, open_setup
    from dit.metrics.watch import look_at_yardstick
    from dit.runtime.device import tune_process
    from dit.runtime.distributed import session
    from dit.sampling.noise import sample_labels
    from dit.tracking import open_tracker

    inputs = find_inputs(work)
    labels = sample_labels(config.sampling, config.dataset.classes)
    tune_process(config.fit_for(run.spec).threads)
    with session() as ranks, open_tracker(config, store, run, enabled=ranks.is_main) as tracker:
        agree(ranks, {**study_facts(config, run, work.dataset_content), "sets": [one.step for one in sets]})
        setup = open_setup(ReferenceFolder(config, store, ranks), inputs, manifests[0].decoder)
        look_at_yardstick(work, run, setup, steps[0], ranks, tracker)
        for sample_set, manifest in zip(sets, manifests, strict=True):
            began = time.perf_counter()
            features = _features(sample_set, manifest, setup, ranks)
            if ranks.is_main:
                metrics, replicates = setup.sample_metrics.measure(features, labels)
                record = _record(sample_set, manifest, setup, metrics, replicates)
                spent = {"seconds": time.perf_counter() - began, "processes": ranks.world_size}
                record = record.model_copy(update=spent)
                _log(run.name, record, config, tracker)
                write_record(store, layout.metrics(config, run, sample_set.step), record)
            ranks.barrier()


def _features(sample_set: SampleSet, manifest: SampleSetManifest, setup: EvaluationSetup, ranks: Ranks) -> Features:
    from dit.metrics.extractors import extract

    config, run = sample_set.config, sample_set.run
    mine = sample_set.parts[ranks.rank :: ranks.world_size]
    images = sum(len(sample_set.indices(part)) for part in mine)
    with progress(f"features {run.name} step {sample_set.step}", images, "images", enabled=ranks.is_main) as bar:

        def shares() -> Iterator[tuple[int, Images]]:
            for part in mine:
                yield part * PART_IMAGES, sample_set.read_part(manifest.files[part])[0]

        batch = config.fit_for(run.spec).feature_batch
        return extract(setup.extractor, shares(), manifest.num_samples, ranks, batch, bar)


def _record(
    sample_set: SampleSet,
    manifest: SampleSetManifest,
    setup: EvaluationSetup,
    metrics: dict[str, Estimate],
    replicates: Iterable[float],
) -> MetricsRecord:
    config, run = sample_set.config, sample_set.run
    return MetricsRecord(
        study=config.study,
        variant=run.spec.name,
        train_seed=run.seed,
        step=sample_set.step,
        config_hash=config.evaluation_hash(run),
        science_hash=config.science_hash(),
        dataset_content=setup.dataset_content,
        metric=config.evaluation.metric,
        metrics=metrics,
        replicates=tuple(replicates),
        confidence=config.evaluation.confidence,
        num_samples=manifest.num_samples,
        sampling=config.sampling.model_dump(mode="json"),
        decoder=manifest.decoder,
        evaluator=setup.extractor.evaluator,
        reference=setup.reference.source,
        reference_sha256=setup.reference.source_sha256,
        extractor_sha256=setup.extractor.sha256,
        noise_floor=setup.noise_floor,
        parameters=run.spec.parameters(config.dataset.inputs),
        gflops=run.spec.gflops(config.dataset.inputs),
    )


def _log(name: str, record: MetricsRecord, config: StudyConfig, tracker: Tracker) -> None:
    # The tracker keeps the first value of a name and step, so `layout.metric` puts the protocol into the name.
    points: dict[str, float] = {}
    for key, metric in record.metrics.items():
        points |= {key: metric.value, f"{key}_low": metric.low, f"{key}_high": metric.high}
    tracker.metrics(record.step, {layout.metric(config, key): value for key, value in points.items()})
    shown = record.metrics[record.metric]
    low, high = format_number(shown.low), format_number(shown.high)
    say(f"{name} step {record.step}: {record.metric} {format_number(shown.value)} [{low}, {high}]")
