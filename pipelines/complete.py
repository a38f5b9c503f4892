"""Whether a study is complete in a store, told from records alone: no torch, no kfp, milliseconds.

It is when each step's records are there, carry this configuration's hash, and the files they list are there, too. Sizes
and checksums are verified by the stage that reads a file. Where the decoder is an autoencoder and at hand, its file is
hashed, for records must name the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dit.codec.weights import decoder_at_hand
from dit.storage import Store, read_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta, DatasetManifest, MetricsRecord, SampleSetManifest, TrainRecord
from dit.study.variants import ModelSpec

Files = list[str] | None
"""Keys that a record vouches for; None where the record is missing or another configuration's."""


def study_complete(config: StudyConfig, store: Store) -> bool:
    """Whether every step before the report is complete; MismatchError for a record of another schema version."""
    return _all_in_place(store, [_dataset(config, store)]) and not unfinished(config, store)


def unfinished(config: StudyConfig, store: Store) -> list[ModelSpec]:
    """The variants of which a step is not complete, the costliest first; raises as `study_complete`."""
    decoder = decoder_at_hand(config.dataset)
    left = [spec for spec in config.specs if not _all_in_place(store, _variant(config, store, spec, decoder))]
    return sorted(left, key=lambda spec: spec.macs(config.dataset.inputs), reverse=True)


def _variant(config: StudyConfig, store: Store, spec: ModelSpec, decoder: str) -> Iterator[Files]:
    yield _training(config, store, spec)
    for step in sorted({*config.evaluation.at_steps, config.train.steps}):
        yield _checkpoint(config, store, spec, step)
    for step in config.evaluation.at_steps:
        yield _samples(config, store, spec, step, decoder)
        yield _metrics(config, store, spec, step, decoder)


def _dataset(config: StudyConfig, store: Store) -> Files:
    folder = layout.dataset(config)
    record = read_record(store, f"{folder}/{layout.MANIFEST}", DatasetManifest)
    if record is None or record.config_hash != config.dataset_hash():
        return None
    return [f"{folder}/{shard.name}" for shard in record.shards]


def _training(config: StudyConfig, store: Store, spec: ModelSpec) -> Files:
    record = read_record(store, layout.train_record(config, spec), TrainRecord)
    if record is None or record.config_hash != config.training_hash(spec) or record.steps < config.train.steps:
        return None
    return []


def _checkpoint(config: StudyConfig, store: Store, spec: ModelSpec, step: int) -> Files:
    folder = layout.checkpoint(config, spec, step)
    record = read_record(store, f"{folder}/{layout.META}", CheckpointMeta)
    if record is None or record.config_hash != config.training_hash(spec):
        return None
    return [f"{folder}/{file.name}" for file in record.files]


def _samples(config: StudyConfig, store: Store, spec: ModelSpec, step: int, decoder: str) -> Files:
    folder = layout.samples(config, spec, step)
    record = read_record(store, f"{folder}/{layout.MANIFEST}", SampleSetManifest)
    if record is None or record.config_hash != config.sampling_hash(spec) or decoder not in ("", record.decoder):
        return None
    return [f"{folder}/{file.name}" for file in record.files]


def _metrics(config: StudyConfig, store: Store, spec: ModelSpec, step: int, decoder: str) -> Files:
    record = read_record(store, layout.metrics(config, spec, step), MetricsRecord)
    if record is None or record.config_hash != config.evaluation_hash(spec) or decoder not in ("", record.decoder):
        return None
    return []


def _all_in_place(store: Store, found: Iterable[Files]) -> bool:
    return all(keys is not None and _in_place(store, keys) for keys in found)


def _in_place(store: Store, keys: list[str]) -> bool:
    # One listing of each folder: a sample set on S3 has hundreds of files, and a request for each would take minutes.
    folders = {key.rpartition("/")[0] for key in keys}
    return set(keys) <= {key for folder in folders for key in store.list(folder)}
