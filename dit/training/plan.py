"""The steps that a training still has to do, known before torch is loaded. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from dit.checkpoints.retention import Retention
from dit.errors import ConfigError, MismatchError
from dit.results.stages import Work, dataset, milestones, training
from dit.results.state import read_output, require, whole_checkpoints
from dit.runtime.distributed import environment_rank, environment_world_size
from dit.storage import Store
from dit.study.config import FitConfig, StudyConfig, TrainConfig
from dit.study.records import CheckpointMeta, TrainRecord
from dit.study.runs import Run
from dit.study.variants import ModelSpec


@dataclass(frozen=True)
class TrainPlan:
    """Steps `start_step` + 1 to `stop_step` of one run; `resume` is the checkpoint at `start_step`, None at 0."""

    work: Work
    run: Run
    fit: FitConfig
    dataset_content: str
    start_step: int
    stop_step: int
    resume: CheckpointMeta | None
    record: TrainRecord | None
    """Of an earlier training with fewer steps or fewer checkpoints; None if there is none."""
    ahead: tuple[int, ...] = ()
    """Steps between `start_step` and `stop_step` whose checkpoints are complete and are not written again."""
    until: int | None = None
    """The step after which this launch ends; None for the study's last, after which it writes the record."""

    @property
    def config(self) -> StudyConfig:
        """The study."""
        return self.work.config

    @property
    def spec(self) -> ModelSpec:
        """The architecture."""
        return self.run.spec

    @property
    def recipe(self) -> TrainConfig:
        """The training recipe, with the run's seed."""
        return self.config.recipe(self.run)

    @property
    def store(self) -> Store:
        """The store of its results."""
        return self.work.store

    @property
    def reaches_end(self) -> bool:
        """Whether the training is complete after this launch."""
        return self.until in (None, self.config.train.steps)

    @property
    def milestones(self) -> tuple[int, ...]:
        """Steps whose checkpoints are never removed: those of this study and those in an earlier training's record."""
        return tuple(sorted({*milestones(self.config), *(self.record.checkpoints if self.record else ())}))

    @property
    def retention(self) -> Retention:
        """The rule for removing checkpoints."""
        return Retention(self.fit.keep_checkpoints, self.milestones, self.stop_step)


def require_equal_shares(config: StudyConfig) -> None:
    """Raise ConfigError when the ranks cannot share the batch."""
    if config.train.global_batch % environment_world_size():
        raise ConfigError(
            f"train.global_batch={config.train.global_batch} is not divisible by world_size={environment_world_size()};"
            " start a number of processes that divides the batch"
        )


def make_plan(work: Work, run: Run, until: int | None = None) -> TrainPlan:
    """Check the inputs without loading torch, and return where to start and stop, at the latest after step `until`.

    Training starts at the newest checkpoint before the first missing milestone. Missing means that the store lacks the
    checkpoint or a file of it, whatever the record contains; it is then made again.

    Raises MissingError without a dataset, MismatchError when a record or checkpoint is of another configuration, of
    other shards or imported, InputError when the store is not writable.
    """
    config, store = work.config, work.store
    record = read_output(work, training(work, run))
    content = require(work, dataset(work)).content_hash()
    if environment_rank() == 0:
        store.check_writable()
    present = whole_checkpoints(work, run)
    imported = [step for step, meta in present.items() if meta.origin is not None]
    if imported:
        raise MismatchError(
            f"{run.name} at step {imported[0]} is imported, and a training does not go on from another program's"
            " checkpoint; import the missing steps, or train under another study name"
        )
    end = until or config.train.steps
    missing = [step for step in milestones(config) if step <= end and step not in present]
    first, last = (missing[0], missing[-1]) if missing else (end, end)
    start = max((step for step in present if step <= first), default=0)
    ahead = tuple(step for step in present if start < step <= last)
    return TrainPlan(
        work, run, config.fit_for(run.spec), content, start, last, present.get(start), record, ahead, until
    )
