"""Trains a variant up to an evaluated or the last step, resuming if it can. Without steps to do it loads no torch."""

from __future__ import annotations

from dit.errors import ConfigError
from dit.results.stages import TRAIN, Work, checkpoint, milestones, training
from dit.results.state import is_complete, require, say_complete
from dit.results.study_copy import keep_study
from dit.runtime.distributed import environment_world_size
from dit.storage import Store
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta, TrainRecord
from dit.study.runs import Run
from dit.training.plan import make_plan, require_equal_shares


def run(config: StudyConfig, store: Store, variant: str) -> TrainRecord:
    """Train the variant's missing steps; return the record of its training. Under torchrun every rank calls this.

    A complete training returns at once. An interrupted one resumes from its newest checkpoint, at any world size; a
    shorter one is extended.

    Raises ConfigError when the variant is unknown or the ranks cannot share the batch.
    Raises RanksDifferError when the ranks do not have the same study, dataset, code version, precision or settings.
    Raises LeaseError when another process trains the variant in this store.
    Raises the errors of `make_plan`, before any work, and of `TrainingLoop.run`, during work.

        train.run(load(Path("configs/digits.yaml")), open_store("runs"), "mini-S/2")
    """
    run, work = config.run(variant), Work(config, store)
    _train(work, run, None)
    return require(work, training(work, run))


def run_until(config: StudyConfig, store: Store, variant: str, step: int) -> CheckpointMeta:
    """Train up to this evaluated step and no further; return the record of its checkpoint.

    The next call resumes there, at any world size. The weights are those of a training that never stopped.

    Raises ConfigError when no checkpoint of that step is kept. Raises the errors of `run`.
    """
    run, work, steps = config.run(variant), Work(config, store), milestones(config)
    if step not in steps:
        raise ConfigError(f"--until {step}: is not an evaluated step; give one of {', '.join(map(str, steps))}")
    _train(work, run, step)
    return require(work, checkpoint(work, run, step))


def _train(work: Work, run: Run, until: int | None) -> None:
    require_equal_shares(work.config)
    if environment_world_size() == 1:
        if is_complete(TRAIN, work, run, until):
            say_complete(TRAIN, run, until)
            return
        make_plan(work, run, until)
    keep_study(work.config, work.store)
    from dit.training.run import execute

    execute(work, run, until)
