"""The images of a source, as sources list them and preparation loads them."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dit.data.images import EXTENSIONS, CorruptImageError, UInt8Array, decode_image
from dit.storage.base import local_errors
from dit.study.config import DatasetConfig

# Enough decoded images to keep the encoder fed while a shard is written: 100 MB at 256 pixels.
_LOOK_AHEAD = 512


@dataclass(frozen=True, slots=True)
class Item:
    """One image: where its bytes lie, and what it is called."""

    key: str
    """Unique in the source; becomes the sample's key in the shards."""
    label: int
    name: str
    """What a person would call it, the same on every machine: class folder and file name."""
    path: str
    offset: int = 0
    size: int = -1
    """Bytes from `offset`; -1 is the whole file."""


@dataclass(frozen=True)
class Source:
    """All images of a dataset, in the order in which they enter the shards."""

    kind: str
    class_names: tuple[str, ...]
    items: Sequence[Item]
    load: Callable[[Item], UInt8Array]
    """An item's image, [image_size, image_size, channels]; raises CorruptImageError."""

    def sha256(self) -> str:
        """Of the ordered keys and labels and the class names: equal on machines that see the same source."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for item in self.items:
            digest.update(f"\n{item.key}\t{item.label}".encode())
        return digest.hexdigest()


def load_ahead(
    source: Source, items: Sequence[Item]
) -> Generator[tuple[Item, UInt8Array | CorruptImageError], None, None]:
    """Load items in order on all cores, ahead of the consumer by a bounded number; a corrupt one comes as its error."""

    def attempt(item: Item) -> UInt8Array | CorruptImageError:
        try:
            return source.load(item)
        except CorruptImageError as error:
            return error

    pending: deque[tuple[Item, Future[UInt8Array | CorruptImageError]]] = deque()
    # Pillow decodes and resizes without the interpreter lock, so threads are enough.
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decode")
    try:
        for item in items:
            pending.append((item, pool.submit(attempt, item)))
            if len(pending) >= _LOOK_AHEAD:
                first, image = pending.popleft()
                yield first, image.result()
        for first, image in pending:
            yield first, image.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_bytes(item: Item) -> bytes:
    """The image file's bytes; StoreError when it cannot be read from the disk."""
    with local_errors(item.path), open(item.path, "rb") as file:
        file.seek(item.offset)
        return file.read(item.size)


def file_loader(dataset: DatasetConfig) -> Callable[[Item], UInt8Array]:
    """A loader of image files for this dataset's size and channels."""
    channels = dataset.codec.channels if dataset.codec.kind == "pixels" else 3

    def load(item: Item) -> UInt8Array:
        return decode_image(read_bytes(item), dataset.image_size, channels, item.name)

    return load


def is_image(name: str) -> bool:
    """Whether a file name is that of an image, and not hidden."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not os.path.basename(name).startswith(".")
