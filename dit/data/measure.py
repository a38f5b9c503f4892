"""Measures the latents of a prepared dataset: the bounds of the health checks, kept beside the manifest."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from dit.codec.base import pixels_to_latents, sample_posterior
from dit.console import progress, say
from dit.data.shards import ShardIndex
from dit.diffusion.schedule import linear_schedule
from dit.errors import DataError
from dit.health.bounds import RUNGS, Bounds, BoundsSums
from dit.health.preparation import DataView
from dit.health.watch import Watch
from dit.results.stages import Work, bounds, dataset
from dit.results.state import look, require
from dit.storage import Store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import BoundsRecord, DatasetManifest, ShardRecord

# Latents per call: a few MB at a time, whatever the size of a shard.
_BATCH = 512
# Shards that are read ahead. Each is held in memory once, because a store may be remote and a disk small.
_AHEAD = 2

Latents = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], list[bytes]]
"""Latents [N, C, H, W], labels [N], and a hash of each sample's stored bytes."""


def measure(config: StudyConfig, store: Store) -> BoundsRecord:
    """Measure the dataset unless that is done; return the record. One pass over the shards, without an encoder.

    Raises MissingError without a complete dataset, DataError when a shard is damaged, UnhealthyError
    when a health check says stop.
    """
    work = Work(config, store)
    found = look(work, bounds(work))
    if found.record is not None and found.complete:
        return found.record
    manifest = require(work, dataset(work))
    measured = _measure(config, store, manifest)
    # Before the record, so that the preparation is not complete with data that a check stops.
    watch = Watch(config, None, store)
    watch.look("prepared", 0, lambda: DataView(manifest, measured))
    watch.flush()
    folder = layout.dataset(config)
    entry = store.write(f"{folder}/{layout.BOUNDS_FILE}", measured.to_bytes())
    abar = linear_schedule().alphas_cumprod
    record = BoundsRecord(
        config_hash=manifest.content_hash(),
        count=measured.count,
        duplicates=measured.duplicates,
        errors={rung: float(measured.errors_T(rung, abar).mean()) for rung in RUNGS},
        class_information=measured.class_information,
        file=entry,
    )
    write_record(store, layout.bounds(config), record)
    shown = ", ".join(f"{rung} {value:.4f}" for rung, value in record.errors.items())
    say(f"{folder}: bounds of the noise error {shown}")
    return record


def load_bounds(work: Work) -> Bounds | None:
    """Return the dataset's bounds; None where it is not measured, as before `dit prepare` runs again.

    Raises DataError when the file is damaged.
    """
    found = look(work, bounds(work))
    if found.record is None or not found.files:
        return None
    key = f"{layout.dataset(work.config)}/{found.record.file.name}"
    data = work.store.read(key)
    if hashlib.sha256(data).hexdigest() != found.record.file.sha256:
        raise DataError(f"{work.store.url}/{key}: damaged; delete {layout.bounds(work.config)} and run `dit prepare`")
    return Bounds.from_bytes(data, f"{work.store.url}/{key}")


def _measure(config: StudyConfig, store: Store, manifest: DatasetManifest) -> Bounds:
    sums = BoundsSums(np.array(manifest.latents.mean), manifest.latent_size, manifest.classes)
    with progress(f"measure {manifest.name}", total=manifest.count, unit="images") as bar:
        for x_NCHW, labels_N, digests in iter_latents(config, store, manifest):
            sums.add(x_NCHW, labels_N, digests)
            bar.advance(len(labels_N))
    return sums.finish()


def iter_latents(config: StudyConfig, store: Store, manifest: DatasetManifest) -> Iterator[Latents]:
    """Yield all latents in the shards' order, drawn from the posterior, of the image or of its mirror image.

    Raises DataError when a shard differs from its record.
    """
    folder = layout.dataset(config)
    filled = [(number, shard) for number, shard in enumerate(manifest.shards) if shard.count]

    def fetch(numbered: tuple[int, ShardRecord]) -> tuple[bytes, ShardIndex]:
        number, shard = numbered
        tar, index = f"{folder}/{shard.name}", f"{folder}/{layout.shard_index(number)}"
        data = store.read(tar)
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            raise DataError(f"{store.url}/{tar}: damaged; delete it and run `dit prepare` again")
        return data, ShardIndex.read(io.BytesIO(store.read(index)), index)

    with ThreadPoolExecutor(_AHEAD) as pool:
        pending = [pool.submit(fetch, numbered) for numbered in filled[:_AHEAD]]
        for position, (number, _) in enumerate(filled):
            data, index = pending.pop(0).result()
            if position + _AHEAD < len(filled):
                pending.append(pool.submit(fetch, filled[position + _AHEAD]))
            random = np.random.Generator(np.random.SFC64([manifest.count, number]))
            for start in range(0, len(index.labels), _BATCH):
                yield _latents(data, index, range(start, min(start + _BATCH, len(index.labels))), manifest, random)


def _latents(
    data: bytes, index: ShardIndex, rows: range, manifest: DatasetManifest, random: np.random.Generator
) -> Latents:
    size, count = index.sample_bytes, int(np.prod(index.shape))
    offsets = index.offsets[rows.start : rows.stop].tolist()
    labels_N = index.labels[rows.start : rows.stop].astype(np.int64)
    digests = [hashlib.blake2b(memoryview(data)[at : at + size], digest_size=8).digest() for at in offsets]
    values = np.stack([np.frombuffer(data, index.dtype, count, at).reshape(index.shape) for at in offsets])
    mirrored = (random.random(len(values)) < 0.5) & manifest.mirror
    if not manifest.codec_sha256:
        values[mirrored] = values[mirrored][..., ::-1]
        return pixels_to_latents(torch.from_numpy(values)).numpy(), labels_N, digests
    moments = torch.from_numpy(values[np.arange(len(values)), mirrored.astype(np.int64)])
    shape = (len(values), manifest.latent_channels, *values.shape[-2:])
    noise = torch.from_numpy(random.standard_normal(shape, dtype=np.float32))
    return sample_posterior(moments, noise, manifest.scale_factor).numpy(), labels_N, digests
