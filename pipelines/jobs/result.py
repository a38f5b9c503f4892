"""Whether a stage has done its work: told by the store, never by a job's status."""

from __future__ import annotations

from collections.abc import Iterator

from dit.errors import DitError
from dit.storage import Store, read_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta, Record, SampleSetManifest, TrainRecord
from dit.study.variants import ModelSpec
from pipelines.jobs.names import Stage


class ResultMissing(DitError):
    """A record that a finished stage leaves is not in the store."""


def records(config: StudyConfig, store: Store, variant: str, stage: Stage) -> list[Record]:
    """The records of a complete stage, as the stage itself returns them.

    Raises ResultMissing, naming the first that is not there or was made by another configuration; StoreError.
    """
    spec = config.spec(variant)
    return list((_training if stage == "train" else _samples)(config, store, spec))


def _training(config: StudyConfig, store: Store, spec: ModelSpec) -> Iterator[Record]:
    made_with = config.training_hash(spec)
    for step in sorted({*config.evaluation.at_steps, config.train.steps}):
        key = f"{layout.checkpoint(config, spec, step)}/{layout.META}"
        meta = read_record(store, key, CheckpointMeta)
        _check(store, key, meta is not None and meta.config_hash, made_with)
    key = layout.train_record(config, spec)
    record = read_record(store, key, TrainRecord)
    _check(store, key, record is not None and record.steps >= config.train.steps and record.config_hash, made_with)
    if record is not None:
        yield record


def _samples(config: StudyConfig, store: Store, spec: ModelSpec) -> Iterator[Record]:
    for step in config.evaluation.at_steps:
        key = f"{layout.samples(config, spec, step)}/{layout.MANIFEST}"
        manifest = read_record(store, key, SampleSetManifest)
        _check(store, key, manifest is not None and manifest.config_hash, config.sampling_hash(spec))
        if manifest is not None:
            yield manifest


def _check(store: Store, key: str, found: str | bool, wanted: str) -> None:
    if not found:
        raise ResultMissing(f"{store.url}/{key} is not there, or not of the last step")
    if found != wanted:
        raise ResultMissing(f"{store.url}/{key} was made with configuration {found}, this study is {wanted}")
