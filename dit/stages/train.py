"""Train one variant to the study's last step, from wherever an earlier run left off. Torch is loaded only to train."""

from __future__ import annotations

from dit.storage import Store
from dit.study.config import StudyConfig
from dit.study.records import TrainRecord
from dit.training.plan import is_complete, make_plan, read_train_record


def run(config: StudyConfig, store: Store, variant: str) -> TrainRecord:
    """Return the record of the variant's training, after doing what is missing of it.

    A complete training is returned at once; an interrupted one goes on from its newest checkpoint, at this world size;
    a shorter one is extended. Under torchrun every rank calls this.

    Raises InputError kinds before any work: ConfigError (unknown variant, batch not divisible), MissingError (dataset),
    MismatchError (record or checkpoint of another configuration or of other shards), InputError (store not writable).
    During work: DivergedError, StoppedError at a signal, DataError, StoreError.
    """
    spec = config.spec(variant)
    record = read_train_record(config, store, spec)
    if record is not None and is_complete(config, store, spec, record):
        return record
    plan = make_plan(config, store, spec, record)
    from dit.training.run import execute

    return execute(plan)
