"""What a training has to do, found out before anything heavy is loaded: nothing, all, or the rest. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from dit.checkpoints.read import check_hash, list_checkpoints, read_meta
from dit.checkpoints.retention import Retention
from dit.errors import ConfigError, MismatchError, MissingError
from dit.runtime.distributed import environment_rank, environment_world_size
from dit.storage import Store, read_record
from dit.study import layout
from dit.study.config import FitConfig, StudyConfig
from dit.study.records import CheckpointMeta, DatasetManifest, TrainRecord
from dit.study.variants import ModelSpec


@dataclass(frozen=True)
class TrainPlan:
    """Steps `start_step` + 1 to `stop_step` of one variant; `resume` is the checkpoint at `start_step`, None at 0."""

    config: StudyConfig
    store: Store
    spec: ModelSpec
    fit: FitConfig
    dataset_content: str
    start_step: int
    stop_step: int
    resume: CheckpointMeta | None
    record: TrainRecord | None
    """Of a training that went to fewer steps, or without all checkpoints that are now to be evaluated."""
    ahead: tuple[int, ...] = ()
    """Steps on the way whose checkpoints are complete already, and stay as they are."""

    @property
    def milestones(self) -> tuple[int, ...]:
        """Steps whose checkpoints are kept: those of this study, and those that an earlier run of it promised."""
        return tuple(sorted({*milestones(self.config), *(self.record.checkpoints if self.record else ())}))

    @property
    def retention(self) -> Retention:
        """Which checkpoints stay."""
        return Retention(self.fit.keep_checkpoints, self.milestones, self.stop_step)


def milestones(config: StudyConfig) -> tuple[int, ...]:
    """The evaluated steps and the last one."""
    return tuple(sorted({*config.evaluation.at_steps, config.train.steps}))


def read_train_record(config: StudyConfig, store: Store, spec: ModelSpec) -> TrainRecord | None:
    """The record of a finished training; MismatchError when another configuration, or another dataset, made it."""
    key = layout.train_record(config, spec)
    record = read_record(store, key, TrainRecord)
    if record is not None:
        where, content = f"{store.url}/{key}", _dataset_content(config, store)
        check_hash(where, record.config_hash, config.training_hash(spec))
        # What is trained needs its shards no more; they may have been removed.
        if content is not None:
            _check_content(where, record.dataset_content, content)
    return record


def is_complete(config: StudyConfig, store: Store, spec: ModelSpec, record: TrainRecord) -> bool:
    """Whether a training went far enough, and all checkpoints that are to be evaluated are there and promised to stay.

    With a constant learning rate a longer training passes through every shorter one.
    """
    kept = {*record.checkpoints} & {*list_checkpoints(store, config, spec)}
    return record.steps >= config.train.steps and kept >= {*milestones(config)}


def make_plan(config: StudyConfig, store: Store, spec: ModelSpec, record: TrainRecord | None) -> TrainPlan:
    """Check everything that can be checked without a framework, and find where to begin.

    The start is the newest checkpoint from which every milestone that is still missing lies ahead. What is missing is
    told by the store, not by a record: a checkpoint that was removed is made again.
    Raises ConfigError, MissingError, MismatchError or InputError, all before any work.
    """
    check_batch(config, environment_world_size())
    content = _dataset_content(config, store)
    if content is None:
        raise MissingError(
            f"{store.url}/{layout.dataset(config)}/{layout.MANIFEST}: the dataset is not prepared; run `dit prepare`"
            " with the same study file"
        )
    if environment_rank() == 0:
        store.check_writable()
    present = list_checkpoints(store, config, spec)
    missing = [step for step in milestones(config) if step not in present]
    first, last = (missing[0], missing[-1]) if missing else (config.train.steps, config.train.steps)
    start = max((step for step in present if step <= first), default=0)
    metas = {step: read_meta(store, config, spec, step) for step in present if start <= step <= last}
    for step, meta in metas.items():
        _check_content(f"{store.url}/{layout.checkpoint(config, spec, step)}", meta.dataset_content, content)
    resume = metas.pop(start, None)
    return TrainPlan(config, store, spec, config.fit_for(spec), content, start, last, resume, record, tuple(metas))


def check_batch(config: StudyConfig, world_size: int) -> None:
    """ConfigError when ranks cannot share the global batch equally."""
    if config.train.global_batch % world_size:
        raise ConfigError(
            f"train.global_batch={config.train.global_batch} is not divisible by world_size={world_size};"
            " start a number of processes that divides it"
        )


def _dataset_content(config: StudyConfig, store: Store) -> str | None:
    """What names the shards' bytes; None where the dataset is not prepared."""
    key = f"{layout.dataset(config)}/{layout.MANIFEST}"
    manifest = read_record(store, key, DatasetManifest)
    if manifest is None:
        return None
    if manifest.config_hash != config.dataset_hash():
        raise MismatchError(
            f"{store.url}/{key}: made with configuration {manifest.config_hash}, this study's dataset is"
            f" {config.dataset_hash()}; prepare it again under another root"
        )
    return manifest.content_hash()


def _check_content(where: str, trained_on: str, content: str) -> None:
    if trained_on != content:
        raise MismatchError(
            f"{where}: trained on shards {trained_on}, the dataset is now {content}; restore the shards, or train"
            " under another study name or root"
        )
