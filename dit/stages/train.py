"""Trains a variant up to the study's last step, resuming if it can. Torch is loaded only if there are steps to do."""

from __future__ import annotations

from dit.results.stages import TRAIN, Work, training
from dit.results.state import is_complete, require, say_complete
from dit.results.study_copy import keep_study
from dit.runtime.distributed import environment_world_size
from dit.storage import Store
from dit.study.config import StudyConfig
from dit.study.records import TrainRecord
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
    spec, work = config.spec(variant), Work(config, store)
    require_equal_shares(config)
    if environment_world_size() == 1:
        if is_complete(TRAIN, work, spec):
            say_complete(TRAIN, spec)
            return require(work, training(work, spec))
        make_plan(work, spec)
    keep_study(config, store)
    from dit.training.run import execute

    return execute(work, spec)
