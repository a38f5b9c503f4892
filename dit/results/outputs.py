"""The outputs of a study's stages: where each is, what it is made from, and how it is recognised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dit import __version__
from dit.checkpoints.read import list_checkpoints
from dit.codec.weights import decoder_at_hand, decoder_differs
from dit.results.output import FileSize, Output
from dit.results.protocols import other_results
from dit.storage import Store, read_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.hashing import digest
from dit.study.records import (
    BoundsRecord,
    CheckpointMeta,
    DatasetManifest,
    FileEntry,
    MetricsRecord,
    ReportRecord,
    SampleSetManifest,
    TrainRecord,
)
from dit.study.runs import Run
from dit.study.yaml_values import as_yaml


@dataclass(frozen=True)
class Work:
    """A study and the store of its results: the input of every stage."""

    config: StudyConfig
    store: Store
    compare_decoder: bool = True
    """Whether to compare the autoencoder's weights with records, which may require a download."""

    @cached_property
    def decoder(self) -> str:
        """Name of the study's decoder, as in records; empty if it is unknown or not compared."""
        return decoder_at_hand(self.config.dataset) if self.compare_decoder else ""

    @cached_property
    def dataset_content(self) -> str | None:
        """Hash of the prepared shards' content; None without the dataset's manifest."""
        manifest = read_record(self.store, dataset(self).key, DatasetManifest)
        return manifest.content_hash() if manifest else None


def dataset(work: Work) -> Output[DatasetManifest]:
    """The dataset's manifest, with all shards and their indices. They may be removed once every run is trained."""
    folder = layout.dataset(work.config)

    def files(manifest: DatasetManifest) -> Iterable[FileSize]:
        for number, shard in enumerate(manifest.shards):
            yield f"{folder}/{shard.name}", shard.bytes
            yield f"{folder}/{layout.shard_index(number)}", None

    return Output(
        key=f"{folder}/{layout.MANIFEST}",
        type=DatasetManifest,
        hash=work.config.dataset_hash(),
        sections="dataset",
        lacking="the dataset is not prepared",
        command="dit prepare STUDY",
        files=files,
        needed_by=lambda: (output for run in work.config.runs for output in training_outputs(work, run)),
    )


def bounds(work: Work) -> Output[BoundsRecord]:
    """The dataset's measurement, made again when the shards change. Complete trainings do not need it."""
    return Output(
        key=layout.bounds(work.config),
        type=BoundsRecord,
        hash=work.dataset_content or "",
        sections="dataset",
        lacking="the dataset is not measured",
        command="dit prepare STUDY",
        files=lambda record: _listed(layout.dataset(work.config), (record.file,)),
        needed_by=lambda: (output for run in work.config.runs for output in training_outputs(work, run)),
        record_stays=False,
        made_from=lambda: (dataset(work),),
        replaceable=True,
    )


def checkpoint(work: Work, run: Run, step: int) -> Output[CheckpointMeta]:
    """A checkpoint's meta.json, with its weights and optimizer state."""
    config, folder = work.config, layout.checkpoint(work.config, run, step)

    def differs(meta: CheckpointMeta) -> str | None:
        if (meta.study, meta.variant) != (config.study, run.spec.name):
            return (
                f"is a checkpoint of {meta.variant} in study {meta.study}, not of {run.spec.name} in {config.study};"
                " remove it or choose another root"
            )
        return _other_shards("trained on", meta.dataset_content, work)

    def complete_steps() -> str:
        return f"complete are: {', '.join(map(str, list_checkpoints(work.store, config, run))) or 'none'}"

    return Output(
        key=f"{folder}/{layout.META}",
        type=CheckpointMeta,
        hash=config.training_hash(run),
        hash_of=lambda study: study.training_hash(study.same_run(run)),
        sections="dataset or train",
        lacking=f"{run.name} has no complete checkpoint at step {step}",
        command=f"dit train STUDY {_options(work, run)}",
        files=lambda meta: _listed(folder, meta.files),
        differs=differs,
        detail=complete_steps,
        made_from=lambda: (dataset(work),),
    )


def training(work: Work, run: Run) -> Output[TrainRecord]:
    """The record of a training that reached the last step and keeps every evaluated checkpoint."""
    config = work.config

    def falls_short(record: TrainRecord) -> str | None:
        # At a constant rate a longer training serves a shorter one, too; with a cosine, its hash is another.
        if record.steps < config.train.steps:
            return f"it is trained to step {record.steps} of {config.train.steps}"
        dropped = sorted({*milestones(config)} - {*record.checkpoints})
        return f"its checkpoint at step {dropped[0]} was not kept" if dropped else None

    return Output(
        key=layout.train_record(config, run),
        type=TrainRecord,
        hash=config.training_hash(run),
        hash_of=lambda study: study.training_hash(study.same_run(run)),
        sections="dataset or train",
        lacking=f"{run.name} is not trained to its end",
        command=f"dit train STUDY {_options(work, run)}",
        differs=lambda record: _other_shards("trained on", record.dataset_content, work),
        falls_short=falls_short,
        made_from=lambda: (dataset(work),),
    )


def samples(work: Work, run: Run, step: int) -> Output[SampleSetManifest]:
    """The manifest of a sample set, with its parts and preview. All may be removed once the set is evaluated."""
    folder, evaluated = layout.samples(work.config, run, step), metrics(work, run, step)
    places = work.store.place(folder), work.store.place(evaluated.key)
    remedy = f"remove {places[0]}, and {places[1]} if there, to draw these samples again"

    return Output(
        key=f"{folder}/{layout.MANIFEST}",
        type=SampleSetManifest,
        hash=work.config.sampling_hash(run),
        hash_of=lambda study: study.sampling_hash(study.same_run(run)),
        sections="dataset, train or sampling",
        lacking=f"{run.name} at step {step} is not sampled",
        command=f"dit sample STUDY {_options(work, run)} --step {step}",
        files=lambda manifest: _listed(folder, manifest.files),
        differs=lambda manifest: decoder_differs(manifest.decoder, work.decoder, remedy),
        needed_by=lambda: (evaluated,),
        made_from=lambda: (checkpoint(work, run, step),),
        record_stays=False,
    )


def metrics(work: Work, run: Run, step: int) -> Output[MetricsRecord]:
    """The record of a checkpoint's evaluation."""

    def differs(record: MetricsRecord) -> str | None:
        remedy = "remove it, and its samples if there are any"
        return decoder_differs(record.decoder, work.decoder, remedy) or _other_shards(
            "measured beside", record.dataset_content, work
        )

    return Output(
        key=layout.metrics(work.config, run, step),
        type=MetricsRecord,
        hash=work.config.evaluation_hash(run),
        hash_of=lambda study: study.evaluation_hash(study.same_run(run)),
        sections="dataset, train, sampling or evaluation",
        lacking=f"{run.name} at step {step} is not evaluated",
        command=f"dit evaluate STUDY {_options(work, run)} --step {step}",
        differs=differs,
        falls_short=lambda record: None if record.metric in record.metrics else f"it has no {record.metric}",
        made_from=lambda: (samples(work, run, step),),
    )


def report(work: Work) -> Output[ReportRecord]:
    """The record of the report, which is made again when one of its inputs changes."""
    folder = layout.report(work.config)
    return Output(
        key=layout.report_record(work.config),
        type=ReportRecord,
        hash=report_hash(work),
        sections="any",
        lacking="the report is not written, or not from these results",
        command="dit report STUDY",
        files=lambda record: _listed(folder, record.files),
        replaceable=True,
    )


def report_hash(work: Work) -> str:
    """A hash of the records that the report is made from."""

    def content(output: Output[Any]) -> str | None:
        record = read_record(work.store, output.key, output.type)
        return digest(record.to_json().decode()) if record else None

    config = work.config
    others = [digest(result.record.to_json().decode()) for result in other_results(config, work.store)]
    places = [(run, step) for run in config.runs for step in config.evaluation.at_steps]
    return digest(
        {
            "program": __version__,
            "study": as_yaml(config.hashed(exclude={"health"})),
            "trained": [content(training(work, run)) for run in config.runs],
            "metrics": [content(metrics(work, run, step)) for run, step in places],
            "samples": [content(samples(work, run, step)) for run, step in places],
            "checkpoints": [content(checkpoint(work, run, step)) for run, step in places],
            **({"others": others} if others else {}),
        }
    )


def milestones(config: StudyConfig) -> tuple[int, ...]:
    """Steps whose checkpoints stay: the evaluated ones and the last."""
    return tuple(sorted({*config.evaluation.at_steps, config.train.steps}))


def training_outputs(work: Work, run: Run | None) -> Sequence[Output[Any]]:
    """The record and the kept checkpoints of a whole training."""
    assert run is not None
    return trained_to(work, run, work.config.train.steps)


def trained_to(work: Work, run: Run, step: int) -> Sequence[Output[Any]]:
    """What a training leaves up to one of its kept steps."""
    kept = tuple(checkpoint(work, run, number) for number in milestones(work.config) if number <= step)
    # The record is written after the last step.
    return kept if step < work.config.train.steps else (training(work, run), *kept)


def _options(work: Work, run: Run) -> str:
    return " ".join(work.config.options(run))


def _listed(folder: str, files: Iterable[FileEntry]) -> Iterable[FileSize]:
    return ((f"{folder}/{entry.name}", entry.bytes) for entry in files)


def _other_shards(how: str, recorded: str, work: Work) -> str | None:
    # Nothing to compare: complete variants do not need the dataset, and imported checkpoints do not name their shards.
    if not recorded or work.dataset_content in (None, recorded):
        return None
    return (
        f"{how} shards {recorded}, the dataset is now {work.dataset_content}; restore the shards or use another"
        " study name or root"
    )
