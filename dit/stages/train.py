"""Train one variant to the study's last step, from wherever an earlier run left off. Torch is loaded only to train."""

from __future__ import annotations

from dit.results.stages import TRAIN, Work, training
from dit.results.state import is_complete, require
from dit.storage import Store
from dit.study.config import StudyConfig
from dit.study.records import TrainRecord
from dit.training.plan import make_plan


def run(config: StudyConfig, store: Store, variant: str) -> TrainRecord:
    """Return the record of the variant's training, after doing what is missing of it.

    A complete training is returned at once; an interrupted one goes on from its newest checkpoint, at this world size;
    a shorter one is extended. Under torchrun every rank calls this.

    Raises before any work: ConfigError (unknown variant, batch not divisible), MissingError (dataset), MismatchError
    (record or checkpoint of another configuration or of other shards), InputError (store not writable).
    Raises during work: DivergedError, StoppedError at a signal, DataError, StoreError.
    """
    spec, work = config.spec(variant), Work(config, store)
    if is_complete(TRAIN, work, spec):
        return require(work, training(work, spec))
    plan = make_plan(work, spec)
    from dit.training.run import execute

    return execute(plan)
