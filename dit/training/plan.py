"""What a training has to do, found out before anything heavy is loaded: nothing, all, or the rest. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from dit.checkpoints.retention import Retention
from dit.errors import ConfigError
from dit.results.stages import Work, dataset, milestones, training
from dit.results.state import read_output, require, whole_checkpoints
from dit.runtime.distributed import environment_rank, environment_world_size
from dit.storage import Store
from dit.study.config import FitConfig, StudyConfig
from dit.study.records import CheckpointMeta, TrainRecord
from dit.study.variants import ModelSpec


@dataclass(frozen=True)
class TrainPlan:
    """Steps `start_step` + 1 to `stop_step` of one variant; `resume` is the checkpoint at `start_step`, None at 0."""

    work: Work
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
    def config(self) -> StudyConfig:
        """The study."""
        return self.work.config

    @property
    def store(self) -> Store:
        """Where its results are."""
        return self.work.store

    @property
    def milestones(self) -> tuple[int, ...]:
        """Steps whose checkpoints are kept: those of this study, and those that an earlier run of it promised."""
        return tuple(sorted({*milestones(self.config), *(self.record.checkpoints if self.record else ())}))

    @property
    def retention(self) -> Retention:
        """Which checkpoints stay."""
        return Retention(self.fit.keep_checkpoints, self.milestones, self.stop_step)


def make_plan(work: Work, spec: ModelSpec) -> TrainPlan:
    """Check everything that can be checked without a framework, and find where to begin.

    The start is the newest checkpoint from which every milestone that is still missing lies ahead. The store decides
    what is missing, not a record: a checkpoint that was removed, or a file of it, is made again.

    Raises ConfigError, MissingError, MismatchError or InputError, all before any work.
    """
    config, store = work.config, work.store
    check_batch(config, environment_world_size())
    record = read_output(work, training(work, spec))
    content = require(work, dataset(work)).content_hash()
    if environment_rank() == 0:
        store.check_writable()
    present = whole_checkpoints(work, spec)
    missing = [step for step in milestones(config) if step not in present]
    first, last = (missing[0], missing[-1]) if missing else (config.train.steps, config.train.steps)
    start = max((step for step in present if step <= first), default=0)
    ahead = tuple(step for step in present if start < step <= last)
    return TrainPlan(work, spec, config.fit_for(spec), content, start, last, present.get(start), record, ahead)


def check_batch(config: StudyConfig, world_size: int) -> None:
    """ConfigError when ranks cannot share the global batch equally."""
    if config.train.global_batch % world_size:
        raise ConfigError(
            f"train.global_batch={config.train.global_batch} is not divisible by world_size={world_size};"
            " start a number of processes that divides it"
        )
