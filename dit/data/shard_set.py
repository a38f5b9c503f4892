"""A prepared dataset, read by position: verified once, then gathered from memory-mapped shards."""

from __future__ import annotations

import math
import mmap
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from dit.data.shards import ALIGNMENT, ShardIndex, read_header
from dit.data.verify import Expected, verify_files
from dit.errors import DataError, InputError
from dit.results.stages import Work, dataset
from dit.results.state import require
from dit.storage import Store
from dit.storage.base import local_errors
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import DatasetManifest, ShardRecord

# Remote shards that are fetched in parallel.
_DOWNLOADS = 8
# Open files of a process besides its shards: libraries, sockets, checkpoints.
_OTHER_FILES = 256


class MappedShard:
    """A local shard; the values of any samples are one vectorised copy from the mapped tar."""

    def __init__(self, path: Path, index: ShardIndex, views: int, name: str) -> None:
        """`views` is the number of equal parts of a sample, read separately: 2 for image and mirror image."""
        with local_errors(path), open(path, "rb") as file:
            # A sample's values follow the tar's header and numpy's.
            first, end = int(index.offsets.min()), int(index.offsets.max()) + index.sample_bytes
            if first < BLOCKSIZE or end > os.fstat(file.fileno()).st_size or (index.offsets % ALIGNMENT).any():
                raise DataError(
                    f"{name}: its index has offsets outside the file; delete both and run `dit prepare` again"
                )
            _check_header(file, index, name)
            mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
        row = index.sample_bytes // views
        # All values begin at multiples of `unit`. A strided view with overlapping rows has a row at each such place, so
        # indexing its rows gathers from arbitrary offsets without a loop in Python.
        unit = math.gcd(ALIGNMENT, row)
        self._rows = as_strided(mapped, ((mapped.size - row) // unit + 1, row), (unit, 1), writeable=False)
        self._first = index.offsets // unit
        self._view_units = row // unit

    def gather(self, samples: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the bytes [N, row] of the given view of each sample."""
        rows: npt.NDArray[np.uint8] = self._rows[self._first[samples] + views * self._view_units]
        return rows


class ShardSet:
    """All samples of a dataset, numbered from 0 through its shards.

    shards = ShardSet.open(store, config)
    values, labels = shards.gather(np.array([5, 1000]), np.array([False, True]))
    """

    def __init__(self, manifest: DatasetManifest, paths: list[Path], indices: list[ShardIndex]) -> None:
        """`paths` and `indices` are those of the verified shards that have samples; use `open`."""
        self.manifest = manifest
        self.labels = np.concatenate([index.labels for index in indices]).astype(np.int64)
        """int64 [count]: the class of every sample."""
        self.is_pixels = indices[0].dtype == np.uint8
        """True if samples are uint8 images [C, H, W], False if float16 posterior moments [M, 2C, h, w]."""
        _check_shapes(manifest, indices)
        self._views = 1 if self.is_pixels else indices[0].shape[0]
        self._shape = indices[0].shape if self.is_pixels else indices[0].shape[1:]
        self._dtype = indices[0].dtype
        self._row_bytes = indices[0].sample_bytes // self._views
        self._ends = np.cumsum([len(index.labels) for index in indices])
        self._starts = np.concatenate([[0], self._ends])
        self._shards = [
            MappedShard(path, index, self._views, shard.name)
            for path, index, shard in zip(paths, indices, _filled(manifest).values(), strict=True)
        ]

    @classmethod
    def open(cls, store: Store, config: StudyConfig, *, show_progress: bool = True) -> Self:
        """Return the study's dataset, with local copies of remote shards, each hashed before its first use.

        Raises MissingError when it is not prepared, MismatchError when it is of another configuration, DataError when
        a shard is truncated or altered, InputError when the limit on open files is too low.
        """
        work = Work(config, store)
        manifest = require(work, dataset(work))
        folder, shards = layout.dataset(config), _filled(manifest)
        _allow_open_files(len(shards))

        def fetch(numbered: tuple[int, ShardRecord]) -> tuple[Expected, Expected]:
            number, shard = numbered
            tar, index = f"{folder}/{shard.name}", f"{folder}/{layout.shard_index(number)}"
            return (
                Expected(tar, store.local(tar, shard.sha256), shard.sha256),
                Expected(index, store.local(index, shard.index_sha256), shard.index_sha256),
            )

        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            fetched = list(pool.map(fetch, shards.items()))
        verify_files([file for pair in fetched for file in pair], show=show_progress)
        indices = [ShardIndex.read(index.path, index.name) for _, index in fetched]
        return cls(manifest, [tar.path for tar, _ in fetched], indices)

    def __len__(self) -> int:
        return len(self.labels)

    def gather(
        self, indices: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Return values and labels [N] of the samples at `indices` [N], mirrored where `mirrored` [N] is true.

        Values are float16 moments [N, 2C, h, w] or uint8 pixels [N, C, H, W]. Moments that were prepared without mirror
        images cannot be mirrored.
        """
        # An encoder is not equivariant: the moments of a mirror image are a view of their own. Pixels are flipped here.
        stored = mirrored & (not self.is_pixels)
        values = self._gather_bytes(indices, stored.astype(np.int64)).view(self._dtype).reshape(-1, *self._shape)
        if self.is_pixels and mirrored.any():
            values[mirrored] = values[mirrored][..., ::-1]
        return values, self.labels[indices]

    def images(self, batch: int) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
        """Yield batches of a pixel dataset's images, uint8 [N, H, W, C], and labels [N], in the shards' order.

        Raises DataError when the shards hold latents: `sources.iter_source_images` reads the images from the source.
        """
        if not self.is_pixels:
            raise DataError(
                f"dataset {self.manifest.name}: its shards hold latents, not images; read the images from the source"
            )
        for start in range(0, len(self), batch):
            chosen = np.arange(start, min(start + batch, len(self)))
            pixels, labels = self.gather(chosen, np.zeros(len(chosen), dtype=np.bool_))
            yield np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels

    def _gather_bytes(self, indices: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        # One gather per shard: sort the samples by shard and split at the borders.
        shard_of = np.searchsorted(self._ends, indices, side="right")
        local = indices - self._starts[shard_of]
        if len(self._shards) == 1:
            return self._shards[0].gather(local, views)
        rows = np.empty((len(indices), self._row_bytes), dtype=np.uint8)
        order = np.argsort(shard_of, kind="stable")
        borders = np.flatnonzero(np.diff(shard_of[order])) + 1
        for positions in np.split(order, borders) if len(order) else ():
            rows[positions] = self._shards[shard_of[positions[0]]].gather(local[positions], views[positions])
        return rows


def _filled(manifest: DatasetManifest) -> dict[int, ShardRecord]:
    """Return the shards that have samples, by number; a shard is empty if all its images were corrupt."""
    return {number: shard for number, shard in enumerate(manifest.shards) if shard.count}


def _allow_open_files(shards: int) -> None:
    """Raise this process's limit on open files if it is too low: a mapped shard keeps its descriptor open.

    Raises InputError when the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = shards + _OTHER_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise InputError(
            f"the dataset's {shards} shards need {needed} open files, and the limit of this process is {hard};"
            f" raise it (ulimit -n {needed}) or prepare with a larger dataset.samples_per_shard"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_header(file: Any, index: ShardIndex, name: str) -> None:
    """Raise DataError if the header of the first sample differs from the index."""
    # A tar member starts at a multiple of 512, with numpy's header; the values follow it.
    file.seek((int(index.offsets[0]) - 1) // 512 * 512)
    try:
        _, shape, dtype = read_header(file)
    except ValueError:
        shape, dtype = (), np.dtype(np.void)
    if (shape, dtype, file.tell()) != (index.shape, index.dtype, int(index.offsets[0])):
        raise DataError(f"{name}: its index belongs to another shard; delete both and run `dit prepare` again")


def _check_shapes(manifest: DatasetManifest, indices: list[ShardIndex]) -> None:
    """Raise DataError if shape, type, labels or number of a shard's samples differ from the manifest."""
    channels, size = manifest.latent_channels, manifest.latent_size
    is_pixels = not manifest.codec_sha256
    shape = (channels, size, size) if is_pixels else (1 + manifest.mirror, 2 * channels, size, size)
    dtype = np.dtype(np.uint8 if is_pixels else "<f2")
    for index, shard in zip(indices, _filled(manifest).values(), strict=True):
        labels_fit = index.labels.min() >= 0 and index.labels.max() < manifest.classes
        if (index.shape, index.dtype, len(index.labels)) != (shape, dtype, shard.count) or not labels_fit:
            raise DataError(f"{shard.name}: its samples differ from the manifest; prepare the dataset again")
