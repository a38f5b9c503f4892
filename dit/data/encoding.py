"""Images of one shard through the codec into a tar, with the statistics that the manifest sums up."""

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
from dit.data.items import Item
from dit.data.shards import MOMENTS, PIXELS, ShardIndex, ShardWriter
from dit.errors import DataError
from dit.storage.base import local_errors
from dit.study.config import DatasetConfig, PixelCodec

Loaded = tuple[Item, UInt8Array | CorruptImageError]
_SHOWN = 3


@dataclass(frozen=True)
class ShardContent:
    """What a written shard holds."""

    index: ShardIndex
    sums: ChannelSums
    corrupt: tuple[tuple[str, str], ...]
    """Name of every image that was left out, and why."""


class ShardEncoder:
    """Writes shards of one dataset."""

    def __init__(
        self, dataset: DatasetConfig, items: int, codec: Codec, batch: int, on_batch: Callable[[int], None]
    ) -> None:
        """`items` are the images of the source; `on_batch` hears, at most `batch` at a time, how many went by."""
        self._codec, self._mirror, self._channels = codec, dataset.mirror, dataset.inputs.channels
        self._batch, self._on_batch = batch, on_batch
        self._lost, self._allowed = 0, dataset.max_corrupt_fraction * items
        self._member = PIXELS if isinstance(dataset.codec, PixelCodec) else MOMENTS

    def write(self, path: Path, loaded: Iterable[Loaded]) -> ShardContent:
        """Write all of `loaded` that is readable to a tar at `path`.

        Batches begin anew with every shard, so that its bytes do not depend on what was encoded before. Raises
        DataError naming images whose encoding is not finite, or when none is readable and more are corrupt by now than
        `dataset.max_corrupt_fraction` allows; StoreError for a full disk.
        """
        corrupt: list[tuple[str, str]] = []
        nothing = np.zeros(self._channels)
        sums = ChannelSums(nothing, nothing, 0)
        with local_errors(path), ShardWriter(path, self._member) as writer:
            for batch in _batches(iter(loaded), self._batch):
                readable = [(item, image) for item, image in batch if not isinstance(image, CorruptImageError)]
                corrupt += [(item.name, str(error)) for item, error in batch if isinstance(error, CorruptImageError)]
                if readable:
                    sums += self._add(writer, readable)
                self._on_batch(len(batch))
        self._lost += len(corrupt)
        if not sums.values and self._lost > self._allowed:
            raise DataError(f"none of {len(corrupt)} images in a row can be read; the first: {corrupt[0][1]}")
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
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise DataError(
            f"the encoding of {', '.join(names[:_SHOWN])}{more} is not finite;"
            " use dataset.codec.dtype=float32 or look at the autoencoder's weights"
        )
