"""Merges shards into a dataset, after checking that they are complete and of one source, codec and configuration."""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from dit.data.items import first_names
from dit.data.shards import ShardIndex
from dit.errors import DataError, MismatchError, MissingError
from dit.storage import Store, read_record, write_record
from dit.study import layout
from dit.study.config import StudyConfig, VaeCodec
from dit.study.records import ChannelStats, DatasetManifest, ShardRecord, SourceRecord

_RECORD = re.compile(r"shard-(\d{5,})\.json")


def shard_total(items: int, config: StudyConfig) -> int:
    """Return the number of shards for `items` images."""
    return -(-items // config.dataset.samples_per_shard)


def merge_shards(config: StudyConfig, store: Store) -> DatasetManifest:
    """Check the shards of all parts, write the manifest, and return it.

    Raises MissingError when shards are missing.
    Raises MismatchError when shards are of another source, codec or configuration.
    Raises DataError when shards are damaged or duplicated, or when more images are corrupt than
    `dataset.max_corrupt_fraction` allows.
    """
    folder = layout.dataset(config)
    source = read_record(store, f"{folder}/{layout.SOURCE}", SourceRecord)
    if source is None:
        raise MissingError(f"{store.place(folder)}: no part has been prepared yet; run `dit prepare` first")
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
    folder, total = layout.dataset(config), shard_total(source.items, config)
    names = [key.rpartition("/")[2] for key in store.list(folder)]
    numbers = {int(match[1]) for name in names if (match := _RECORD.fullmatch(name))}
    missing = sorted(set(range(total)) - numbers)
    if missing:
        raise MissingError(
            f"{store.place(folder)}: {len(missing)} of {total} shards are missing:"
            f" {first_names(map(layout.shard, missing))};"
            " run the parts that make them: part k of n makes every n-th shard, beginning with the k-th"
        )
    if len(numbers) > total:
        stray = first_names(map(layout.shard_record, sorted(numbers - set(range(total)))))
        raise DataError(f"{store.place(folder)}: {stray} is one too many for {source.items} images; delete the record")
    records = (read_record(store, f"{folder}/{layout.shard_record(number)}", ShardRecord) for number in range(total))
    return [record for record in records if record is not None]


def _check_origin(shards: list[ShardRecord], source: SourceRecord, config: StudyConfig) -> None:
    _require_one(shards, lambda shard: shard.config_hash, "dataset configurations", config.dataset_hash())
    _require_one(shards, lambda shard: shard.source_sha256, "sources", source.sha256)
    _require_one(shards, lambda shard: shard.codec_sha256, "codec weights", None)


def _require_one(shards: list[ShardRecord], value: Callable[[ShardRecord], str], what: str, right: str | None) -> None:
    groups: dict[str, list[str]] = defaultdict(list)
    for shard in shards:
        groups[value(shard)].append(shard.name)
    if len(groups) == 1 and right in (None, *groups):
        return
    made = [f"{origin[:12] or 'none'} made {first_names(names)}" for origin, names in sorted(groups.items())]
    expected = f", expected {right[:12]}" if right is not None else ""
    raise MismatchError(
        f"shards come from different {what}: {'; '.join(made)}{expected};"
        " delete the wrong ones and run their parts again"
    )


def _check_place(
    store: Store, folder: str, number: int, shard: ShardRecord, source: SourceRecord, config: StudyConfig
) -> None:
    """Check that a shard has the images of its number, that its counts add up, and that its file is there."""
    per_shard = config.dataset.samples_per_shard
    first = number * per_shard
    due = (layout.shard(number), first, min(per_shard, source.items - first))
    if (shard.name, shard.first_item, shard.items) != due:
        raise DataError(
            f"{store.place(f'{folder}/{layout.shard_record(number)}')}: describes {shard.name} with images from"
            f" {shard.first_item}, which is duplicated or out of place; delete it and run its part again"
        )
    adds_up = shard.count + len(shard.corrupt) == shard.items and sum(shard.label_counts) == shard.count
    key = f"{folder}/{shard.name}"
    if not adds_up or not store.exists(key) or store.size(key) != shard.bytes:
        raise DataError(
            f"{store.place(key)}: truncated, or different from its record; delete both and run its part again"
        )


def _check_keys(store: Store, folder: str, shards: list[ShardRecord]) -> None:
    """Check that indices are intact and that no key occurs twice in the dataset."""
    shard_of: dict[bytes, str] = {}
    for number, shard in enumerate(shards):
        name = f"{folder}/{layout.shard_index(number)}"
        data = store.read(name)
        if hashlib.sha256(data).hexdigest() != shard.index_sha256:
            raise DataError(
                f"{store.place(name)}: differs from its record; delete both and run {shard.name}'s part again"
            )
        for key in ShardIndex.read(io.BytesIO(data), name).keys.tolist():
            if key in shard_of:
                raise DataError(f"{shard.name}: key {key.decode()} occurs in {shard_of[key]} too; run both parts again")
            shard_of[key] = shard.name


def _check_corrupt(shards: list[ShardRecord], source: SourceRecord, config: StudyConfig) -> None:
    corrupt = [name for shard in shards for name in shard.corrupt]
    allowed = config.dataset.max_corrupt_fraction
    if len(corrupt) > allowed * source.items:
        raise DataError(
            f"{len(corrupt)} of {source.items} images are corrupt, more than dataset.max_corrupt_fraction={allowed:g}"
            f" allows: {first_names(corrupt)}; repair them or raise the limit, and run `dit prepare` again"
        )


def _manifest(config: StudyConfig, source: SourceRecord, shards: list[ShardRecord]) -> DatasetManifest:
    dataset, inputs = config.dataset, config.dataset.inputs
    # Mean and variance of all latents from sums of x and x^2, which add up over shards in any order of preparation.
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
        left_out=source.left_out,
    )
