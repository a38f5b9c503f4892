"""Encodes the images of a shard into a tar, and sums up the statistics of its latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dit.codec.base import ChannelSums, Codec
from dit.data.images import CorruptImageError, UInt8Array
from dit.data.items import Item, first_names
from dit.data.shards import MOMENTS, PIXELS, ShardIndex, ShardWriter
from dit.errors import DataError
from dit.storage.base import local_errors
from dit.study.config import DatasetConfig, PixelCodec

Loaded = tuple[Item, UInt8Array | CorruptImageError]


@dataclass(frozen=True)
class ShardContent:
    """Index, statistics and corrupt images of a written shard."""

    index: ShardIndex
    sums: ChannelSums
    corrupt: tuple[tuple[str, str], ...]
    """(name, reason) of every image that was left out."""


class ShardEncoder:
    """Writes the shards of a dataset."""

    def __init__(
        self, dataset: DatasetConfig, items: int, codec: Codec, batch: int, on_batch: Callable[[int], None]
    ) -> None:
        """`items` is the number of images in the source; `on_batch` is called with the size of each batch."""
        self._codec, self._mirror, self._channels = codec, dataset.mirror, dataset.inputs.channels
        self._batch, self._on_batch = batch, on_batch
        self._lost, self._allowed = 0, dataset.max_corrupt_fraction * items
        self._member = PIXELS if isinstance(dataset.codec, PixelCodec) else MOMENTS

    def write(self, path: Path, loaded: Iterable[Loaded]) -> ShardContent:
        """Write the readable images of `loaded` to a tar at `path`; return its content.

        Raises DataError when an encoding is not finite, or when no image of the shard is readable and more images are
        corrupt so far than `dataset.max_corrupt_fraction` allows.
        Raises StoreError when the disk is full.
        """
        corrupt: list[tuple[str, str]] = []
        nothing = np.zeros(self._channels)
        sums = ChannelSums(nothing, nothing, 0)
        with local_errors(path), ShardWriter(path, self._member) as writer:
            # No batch spans two shards, so a shard's bytes do not depend on what was encoded before it.
            for batch in _batches(iter(loaded), self._batch):
                readable = [(item, image) for item, image in batch if not isinstance(image, CorruptImageError)]
                corrupt += [(item.name, str(error)) for item, error in batch if isinstance(error, CorruptImageError)]
                if readable:
                    sums += self._add(writer, readable)
                self._on_batch(len(batch))
        self._lost += len(corrupt)
        if not sums.values and self._lost > self._allowed:
            raise DataError(
                f"none of {len(corrupt)} images in a row can be read; the first: {corrupt[0][1]}; check dataset.source"
            )
        return ShardContent(writer.index(), sums, tuple(corrupt))

    def _add(self, writer: ShardWriter, images: list[tuple[Item, UInt8Array]]) -> ChannelSums:
        items = [item for item, _ in images]
        encoded = self._codec.encode(np.stack([image for _, image in images]), self._mirror)
        _require_finite(encoded, items)
        for item, values in zip(items, encoded, strict=True):
            writer.add(item.key, item.label, values)
        return self._codec.sums(encoded)


def _batches(loaded: Iterator[Loaded], size: int) -> Iterator[list[Loaded]]:
    while batch := list(islice(loaded, size)):
        yield batch


def _require_finite(encoded: npt.NDArray[Any], items: list[Item]) -> None:
    finite = np.isfinite(encoded).reshape(len(encoded), -1).all(axis=1)
    names = [item.name for item, good in zip(items, finite, strict=True) if not good]
    if names:
        raise DataError(
            f"the encoding of {first_names(names)} is not finite;"
            " use dataset.codec.dtype=float32 or check the autoencoder's weights"
        )
