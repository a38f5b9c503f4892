"""Finished shards into one dataset: none missing, none double, all of the same source, codec and configuration."""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np

from dit.data.shards import ShardIndex
from dit.errors import DataError, MismatchError, MissingError
from dit.storage import Store, read_record, write_record
from dit.study import layout
from dit.study.config import StudyConfig, VaeCodec
from dit.study.records import ChannelStats, DatasetManifest, ShardRecord, SourceRecord

_RECORD = re.compile(r"shard-(\d{5,})\.json")
_SHOWN = 5


def shard_total(items: int, config: StudyConfig) -> int:
    """How many shards a source of so many items fills."""
    return -(-items // config.dataset.samples_per_shard)


def merge_shards(config: StudyConfig, store: Store) -> DatasetManifest:
    """Check that the shards of all parts are one whole and write the manifest, last.

    Raises MissingError naming shards that no part has made yet, MismatchError naming those of another source, codec or
    configuration, DataError for damaged or double ones and when more images are corrupt than
    `dataset.max_corrupt_fraction` allows.
    """
    folder = layout.dataset(config)
    source = read_record(store, f"{folder}/{layout.SOURCE}", SourceRecord)
    if source is None:
        raise MissingError(f"{store.url}/{folder}: no part has been prepared yet; run `dit prepare` first")
    shards = _read_shards(store, config, source)
    _check_origin(shards, source, config)
    for number, shard in enumerate(shards):
        _check_place(store, folder, number, shard, source, config)
    _check_keys(store, folder, shards)
    _check_corrupt(shards, source, config)
    manifest = _manifest(config, source, shards)
    write_record(store, f"{folder}/{layout.MANIFEST}", manifest)
    return manifest


def _read_shards(store: Store, config: StudyConfig, source: SourceRecord) -> list[ShardRecord]:
    """Records of all shards in order."""
    folder, total = layout.dataset(config), shard_total(source.items, config)
    names = [key.rpartition("/")[2] for key in store.list(folder)]
    numbers = {int(match[1]) for name in names if (match := _RECORD.fullmatch(name))}
    missing = sorted(set(range(total)) - numbers)
    if missing:
        raise MissingError(
            f"{store.url}/{folder}: {len(missing)} of {total} shards are missing: {_some(map(layout.shard, missing))};"
            " run the parts that make them, with part k of n making every n-th shard from the k-th"
        )
    if len(numbers) > total:
        stray = _some(map(layout.shard_record, sorted(numbers - set(range(total)))))
        raise DataError(f"{store.url}/{folder}: {stray} is one too many for {source.items} images; delete it")
    records = (read_record(store, f"{folder}/{layout.shard_record(number)}", ShardRecord) for number in range(total))
    return [record for record in records if record is not None]


def _check_origin(shards: list[ShardRecord], source: SourceRecord, config: StudyConfig) -> None:
    """All shards must come from this configuration, this source and one codec."""
    _require_one(shards, lambda shard: shard.config_hash, "dataset configurations", config.dataset_hash())
    _require_one(shards, lambda shard: shard.source_sha256, "sources", source.sha256)
    _require_one(shards, lambda shard: shard.codec_sha256, "codec weights", None)


def _require_one(shards: list[ShardRecord], value: Callable[[ShardRecord], str], what: str, right: str | None) -> None:
    groups: dict[str, list[str]] = defaultdict(list)
    for shard in shards:
        groups[value(shard)].append(shard.name)
    if len(groups) == 1 and right in (None, *groups):
        return
    told_apart = "; ".join(f"{found[:12] or 'none'} made {_some(names)}" for found, names in sorted(groups.items()))
    wanted = f", needed is {right[:12]}" if right is not None else ""
    raise MismatchError(
        f"shards come from different {what}: {told_apart}{wanted}; delete the wrong ones and make them again"
    )


def _check_place(
    store: Store, folder: str, number: int, shard: ShardRecord, source: SourceRecord, config: StudyConfig
) -> None:
    """A shard must be the one of its number, whole, and add up."""
    per_shard = config.dataset.samples_per_shard
    first = number * per_shard
    due = (layout.shard(number), first, min(per_shard, source.items - first))
    if (shard.name, shard.first_item, shard.items) != due:
        raise DataError(
            f"{store.url}/{folder}/{layout.shard_record(number)}: describes {shard.name} with images from"
            f" {shard.first_item}, which is double or out of place; delete it and run its part again"
        )
    adds_up = shard.count + len(shard.corrupt) == shard.items and sum(shard.label_counts) == shard.count
    key = f"{folder}/{shard.name}"
    if not adds_up or not store.exists(key) or store.size(key) != shard.bytes:
        raise DataError(f"{store.url}/{key}: truncated or not what its record says; delete both and run its part again")


def _check_keys(store: Store, folder: str, shards: list[ShardRecord]) -> None:
    """A key occurs once in the whole dataset."""
    seen: dict[bytes, str] = {}
    for number, shard in enumerate(shards):
        name = f"{folder}/{layout.shard_index(number)}"
        data = store.read(name)
        if hashlib.sha256(data).hexdigest() != shard.index_sha256:
            raise DataError(f"{store.url}/{name}: altered; delete it and {shard.name}'s record, and run its part again")
        for key in ShardIndex.read(io.BytesIO(data), name).keys.tolist():
            if key in seen:
                raise DataError(f"{shard.name}: key {key.decode()} occurs in {seen[key]} too; run both parts again")
            seen[key] = shard.name


def _check_corrupt(shards: list[ShardRecord], source: SourceRecord, config: StudyConfig) -> None:
    corrupt = [name for shard in shards for name in shard.corrupt]
    allowed = config.dataset.max_corrupt_fraction
    if len(corrupt) > allowed * source.items:
        raise DataError(
            f"{len(corrupt)} of {source.items} images are corrupt, more than dataset.max_corrupt_fraction={allowed:g}"
            f" allows: {_some(corrupt)}; repair them or raise it, and run `dit prepare` again"
        )


def _manifest(config: StudyConfig, source: SourceRecord, shards: list[ShardRecord]) -> DatasetManifest:
    dataset, inputs = config.dataset, config.dataset.inputs
    values = sum(shard.values_per_channel for shard in shards)
    mean = np.sum([shard.channel_sum for shard in shards], axis=0) / values
    variance = np.sum([shard.channel_square_sum for shard in shards], axis=0) / values - np.square(mean)
    return DatasetManifest(
        name=dataset.name,
        config_hash=config.dataset_hash(),
        source=source.kind,
        source_sha256=source.sha256,
        codec=dataset.codec.kind,
        codec_sha256=shards[0].codec_sha256,
        image_size=dataset.image_size,
        latent_channels=inputs.channels,
        latent_size=inputs.size,
        scale_factor=dataset.codec.scale_factor if isinstance(dataset.codec, VaeCodec) else 1.0,
        classes=dataset.classes,
        class_names=source.class_names,
        mirror=dataset.mirror,
        count=sum(shard.count for shard in shards),
        corrupt=sum(len(shard.corrupt) for shard in shards),
        label_counts=tuple(np.sum([shard.label_counts for shard in shards], axis=0).tolist()),
        latents=ChannelStats(mean=tuple(mean.tolist()), std=tuple(np.sqrt(np.maximum(variance, 0)).tolist())),
        shards=tuple(shards),
    )


def _some(names: Iterable[str]) -> str:
    """The first few names."""
    every = list(names)
    return ", ".join(every[:_SHOWN]) + (f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else "")
