"""Makes a dataset of shards from images: in parts, on any number of machines, restartable after each shard."""

from __future__ import annotations

import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from dit.codec.open import open_codec
from dit.codec.weights import encoder_sha256
from dit.console import progress, say
from dit.data.codec_check import check_codec
from dit.data.encoding import ShardContent, ShardEncoder
from dit.data.images import CorruptImageError
from dit.data.items import Item, Source, load_ahead
from dit.data.left_out import describe
from dit.data.measure import measure
from dit.data.merge import merge_shards, shard_total
from dit.data.sources import open_source
from dit.errors import MismatchError, one_line
from dit.results.stages import PREPARE, Work, dataset
from dit.results.state import look, say_complete
from dit.runtime.device import tune_process
from dit.sampling import grid
from dit.storage import Store, read_record, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import DatasetManifest, ShardRecord, SourceRecord

# Records that are read from the store in parallel.
_REQUESTS = 16


def run(
    config: StudyConfig, store: Store, part: tuple[int, int] | None = None, merge: bool = True
) -> DatasetManifest | None:
    """Make the missing shards of the dataset, or of part (k, n) only; without a part, merge them too.

    Returns the manifest if the dataset is complete, otherwise None.
    Raises InputError, MissingError or MismatchError before any work, when the source or the codec's weights are wrong.
    Raises DataError when too many images are corrupt, StoreError when the disk is full, UnhealthyError when a health
    check says stop.

        prepare.run(load(Path("configs/digits.yaml")), open_store("runs"))
    """
    manifest = _complete(config, store)
    if manifest is None:
        _Preparation.begin(config, store).make(part or (1, 1))
        if part is None and merge:
            manifest = merge_shards(config, store)
            say(f"{layout.dataset(config)}: {manifest.count} images in {len(manifest.shards)} shards")
    else:
        say_complete(PREPARE)
    if manifest is not None and merge:
        _measure(config, store)
    return manifest


def merge(config: StudyConfig, store: Store) -> DatasetManifest:
    """Merge the shards of all parts; return the manifest. Raises as `merge_shards`."""
    manifest = _complete(config, store) or merge_shards(config, store)
    _measure(config, store)
    return manifest


def _measure(config: StudyConfig, store: Store) -> None:
    """Measure a dataset whose shards are there; once every variant is trained they may be gone."""
    work = Work(config, store)
    if look(work, dataset(work)).files:
        measure(config, store)


def _complete(config: StudyConfig, store: Store) -> DatasetManifest | None:
    work = Work(config, store)
    finding = look(work, dataset(work))
    return finding.record if finding.complete else None


@dataclass(frozen=True)
class _Preparation:
    """A source and a codec, equal for all parts, and the shards to make from them."""

    config: StudyConfig
    store: Store
    source: Source
    source_sha256: str
    codec_sha256: str

    @classmethod
    def begin(cls, config: StudyConfig, store: Store) -> _Preparation:
        """Check weights, source and store, and compare the source with that of other parts."""
        codec_sha256 = encoder_sha256(config.dataset)
        source = open_source(config.dataset)
        store.check_writable()
        preparation = cls(config, store, source, source.sha256(), codec_sha256)
        preparation._agree()
        return preparation

    def _agree(self) -> None:
        """Write the source's record, or raise MismatchError if another part wrote a different one."""
        key = f"{self._folder}/{layout.SOURCE}"
        ours = SourceRecord(
            kind=self.source.kind,
            sha256=self.source_sha256,
            items=len(self.source.items),
            class_names=self.source.class_names,
            left_out=self.source.left_out,
        )
        if ours.left_out:
            say(f"dataset.source: not part of the dataset: {describe(ours.left_out)}")
        theirs = read_record(self.store, key, SourceRecord)
        # Hidden files, for example, may differ between the machines of the parts.
        if theirs is not None and theirs.model_copy(update={"left_out": ours.left_out}) != ours:
            raise MismatchError(
                f"{self.store.place(key)}: begun from source {theirs.sha256[:12]} of {theirs.items} images, here it is"
                f" {ours.sha256[:12]} of {ours.items}; use the same source for all parts, or delete"
                f" {self.store.place(self._folder)}"
            )
        if theirs != ours:
            write_record(self.store, key, ours)

    def make(self, part: tuple[int, int]) -> None:
        """Make every shard of the part that is not complete."""
        numbers = range(part[0] - 1, shard_total(len(self.source.items), self.config), part[1])
        todo = self._unfinished(numbers)
        total = sum(len(self._items(number)) for number in numbers)
        left = sum(len(self._items(number)) for number in todo)
        if not todo:
            say(f"part {part[0]} of {part[1]} is complete: {len(numbers)} shards")
            return
        if 0 in todo:
            self._preview()
        tune_process(self.config.fit.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        codec = open_codec(self.config.dataset, device, decoding=False, batch=self.config.fit.decode_batch)
        if part[0] == 1:
            check_codec(self.config, self.store, self.source, codec)
        # One sequence over all shards, so decoding goes on between the end of a shard and the start of the next.
        images = load_ahead(self.source, [item for number in todo for item in self._items(number)])
        description = f"prepare {self.config.dataset.name}"
        with (
            progress(description, total=total, unit="images", completed=total - left) as bar,
            closing(images),
            tempfile.TemporaryDirectory(prefix="dit-prepare-") as scratch,
            ThreadPoolExecutor(1) as sender,
        ):
            encoder = ShardEncoder(
                self.config.dataset, len(self.source.items), codec, self.config.fit.decode_batch, bar.advance
            )
            # A shard is uploaded while the next is encoded; one upload at a time bounds the scratch space.
            sent: Future[None] | None = None
            for number in todo:
                path = Path(scratch) / layout.shard(number)
                content = encoder.write(path, islice(images, len(self._items(number))))
                if sent is not None:
                    sent.result()
                sent = sender.submit(self._send, number, path, content)
            if sent is not None:
                sent.result()

    def _preview(self) -> None:
        """Write a preview of the first shard's images, in the layout of the sample sets' previews."""
        items, names = self._items(0), self.source.class_names
        chosen = grid.choose(np.array([item.label for item in items]), self.config.dataset.classes)
        with closing(load_ahead(self.source, [items[i] for row in chosen for i in row])) as images:
            readable = {item.key: image for item, image in images if not isinstance(image, CorruptImageError)}
        rows = [
            [(readable[items[i].key], names[items[i].label]) for i in row if items[i].key in readable] for row in chosen
        ]
        if rows := [row for row in rows if row]:
            self.store.write(layout.real_grid(self.config), grid.render(rows))

    def _unfinished(self, numbers: range) -> list[int]:
        """Return the shards to make: incomplete ones, and those with corrupt images if there are too many of these."""
        with ThreadPoolExecutor(_REQUESTS) as pool:
            records = dict(zip(numbers, pool.map(self._finished, numbers), strict=True))
        corrupt = sum(len(record.corrupt) for record in records.values() if record)
        # Shards with corrupt images are made again, because the images may have been repaired.
        again = corrupt > self.config.dataset.max_corrupt_fraction * len(self.source.items)
        return [number for number, record in records.items() if record is None or (again and record.corrupt)]

    def _finished(self, number: int) -> ShardRecord | None:
        """Return the record of a complete shard, else None. Raises MismatchError if its origin is another."""
        record = read_record(self.store, f"{self._folder}/{layout.shard_record(number)}", ShardRecord)
        tar, index = f"{self._folder}/{layout.shard(number)}", f"{self._folder}/{layout.shard_index(number)}"
        if record is None or not self.store.exists(tar) or self.store.size(tar) != record.bytes:
            return None
        if not self.store.exists(index):
            return None
        ours = (self.config.dataset_hash(), self.source_sha256, self.codec_sha256)
        theirs = (record.config_hash, record.source_sha256, record.codec_sha256)
        for what, mine, other in zip(("configuration", "source", "codec weights"), ours, theirs, strict=True):
            if mine != other:
                raise MismatchError(
                    f"{self.store.place(tar)}: made with {what} {other[:12] or 'none'},"
                    f" here it is {mine[:12] or 'none'}; use the same {what}, or delete"
                    f" {self.store.place(self._folder)}"
                )
        return record

    def _send(self, number: int, path: Path, content: ShardContent) -> None:
        """Upload a shard, its record last; runs while the next shard is encoded."""
        config, folder = self.config, self._folder
        for _, reason in content.corrupt:
            say(one_line(f"left out: {reason}"))
        tar = self.store.upload(path, f"{folder}/{layout.shard(number)}")
        index = self.store.write(f"{folder}/{layout.shard_index(number)}", content.index.to_bytes())
        path.unlink()
        record = ShardRecord(
            name=layout.shard(number),
            bytes=tar.bytes,
            sha256=tar.sha256,
            index_sha256=index.sha256,
            count=len(content.index.labels),
            first_item=number * config.dataset.samples_per_shard,
            items=len(self._items(number)),
            corrupt=tuple(name for name, _ in content.corrupt),
            label_counts=tuple(np.bincount(content.index.labels, minlength=config.dataset.classes).tolist()),
            channel_sum=tuple(content.sums.total.tolist()),
            channel_square_sum=tuple(content.sums.square.tolist()),
            values_per_channel=content.sums.values,
            source_sha256=self.source_sha256,
            codec_sha256=self.codec_sha256,
            config_hash=config.dataset_hash(),
        )
        write_record(self.store, f"{folder}/{layout.shard_record(number)}", record)

    def _items(self, number: int) -> list[Item]:
        per_shard = self.config.dataset.samples_per_shard
        return list(self.source.items[number * per_shard : (number + 1) * per_shard])

    @property
    def _folder(self) -> str:
        return layout.dataset(self.config)
