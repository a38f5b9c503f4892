"""Images of one shard through the codec into a tar, with the statistics that the manifest sums up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dit.codec import ChannelSums, Codec
from dit.config import DatasetConfig, PixelCodec
from dit.data.images import CorruptImageError, UInt8Array
from dit.data.items import Item
from dit.data.shards import MOMENTS, PIXELS, ShardIndex, ShardWriter
from dit.errors import DataError
from dit.storage_base import local_errors

Loaded = tuple[Item, UInt8Array | CorruptImageError]


@dataclass(frozen=True)
class ShardContent:
    """What a written shard holds."""

    index: ShardIndex
    label_counts: tuple[int, ...]
    corrupt: tuple[CorruptImageError, ...]
    corrupt_names: tuple[str, ...]
    sums: ChannelSums


def write_shard(
    path: Path,
    loaded: Iterable[Loaded],
    codec: Codec,
    dataset: DatasetConfig,
    batch: int,
    on_batch: Callable[[int], None],
) -> ShardContent:
    """Write all of `loaded` that is readable to a tar at `path`; `on_batch` hears how many images went by.

    Raises DataError naming the images whose encoding is not finite, or when no image is readable, StoreError when the
    disk is full.
    """
    corrupt: list[tuple[str, CorruptImageError]] = []
    label_counts = np.zeros(dataset.classes, dtype=np.int64)
    sums: list[ChannelSums] = []
    member = PIXELS if isinstance(dataset.codec, PixelCodec) else MOMENTS
    with local_errors(path), ShardWriter(path, member) as writer:
        for chunk in _batches(iter(loaded), batch):
            items, images = [], []
            for item, image in chunk:
                if isinstance(image, CorruptImageError):
                    corrupt.append((item.name, image))
                else:
                    items.append(item)
                    images.append(image)
            if images:
                encoded = codec.encode(np.stack(images), dataset.mirror)
                _require_finite(encoded, items)
                sums.append(codec.sums(encoded))
                for item, values in zip(items, encoded, strict=True):
                    writer.add(item.key, item.label, values)
                    label_counts[item.label] += 1
            on_batch(len(chunk))
    if not sums:
        raise DataError(f"none of {len(corrupt)} images in a row can be read, the first is {corrupt[0][1]}")
    names, errors = zip(*corrupt, strict=True) if corrupt else ((), ())
    return ShardContent(writer.index(), tuple(label_counts.tolist()), errors, names, _add(sums))


def _batches(loaded: Iterator[Loaded], size: int) -> Iterator[list[Loaded]]:
    while chunk := list(islice(loaded, size)):
        yield chunk


def _require_finite(encoded: npt.NDArray[Any], items: list[Item]) -> None:
    finite = np.isfinite(encoded).reshape(len(encoded), -1).all(axis=1)
    if not finite.all():
        names = [item.name for item, good in zip(items, finite, strict=True) if not good]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise DataError(
            f"the encoding of {', '.join(names[:3])}{more} is not finite;"
            " use dataset.codec.dtype=float32 or look at the autoencoder's weights"
        )


def _add(sums: list[ChannelSums]) -> ChannelSums:
    return ChannelSums(
        np.sum([part.total for part in sums], axis=0),
        np.sum([part.square for part in sums], axis=0),
        sum(part.values for part in sums),
    )
