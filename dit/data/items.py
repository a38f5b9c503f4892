"""The images of a source: their list, and loading them ahead of the encoder."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dit.data.images import (
    EXTENSIONS,
    MAX_FILE_BYTES,
    CorruptImageError,
    UInt8Array,
    decode_image,
    one_at_a_time,
)
from dit.errors import InputError
from dit.storage.base import local_errors
from dit.study.config import DatasetConfig
from dit.study.records import LeftOut

# Decoded images that wait for the encoder, so that it is not idle while files are slow: 100 MB at 256 pixels.
_LOOK_AHEAD = 512
# Errors that a later try meets again. All others, such as those of a disk or a network, may pass.
_LASTING = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}


@dataclass(frozen=True, slots=True)
class Item:
    """An image: the place of its bytes, its key, label and name."""

    key: str
    """Unique in the source; the sample's key in the shards."""
    label: int
    name: str
    """Name for messages, equal on every machine: class folder and file name."""
    path: str
    offset: int = 0
    size: int = -1
    """Bytes from `offset`; -1 means up to the end of the file."""


@dataclass(frozen=True)
class Source:
    """All images of a dataset, in the order of the shards."""

    kind: str
    class_names: tuple[str, ...]
    items: Sequence[Item]
    load: Callable[[Item], UInt8Array]
    """Returns an item's image [image_size, image_size, channels]; raises CorruptImageError."""
    left_out: tuple[LeftOut, ...] = ()

    def sha256(self) -> str:
        """Return the SHA-256 of the class names and the ordered keys and labels: one source, one hash."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for item in self.items:
            digest.update(f"\n{item.key}\t{item.label}".encode())
        return digest.hexdigest()


def load_ahead(
    source: Source, items: Sequence[Item]
) -> Generator[tuple[Item, UInt8Array | CorruptImageError], None, None]:
    """Yield items in order with their images, loaded ahead on all cores; a corrupt image is yielded as its error."""

    def attempt(item: Item) -> UInt8Array | CorruptImageError:
        try:
            return source.load(item)
        except CorruptImageError as error:
            return error

    pending: deque[tuple[Item, Future[UInt8Array | CorruptImageError]]] = deque()
    # Pillow releases the interpreter lock while it decodes and resizes, so threads use all cores.
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


def read_bytes(path: str, offset: int, size: int) -> bytes:
    """Return `size` bytes from `offset` of a local file.

    Raises InputError when this user may not read it, StoreError when that fails for another reason.
    """
    with source_errors(path), open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


@contextmanager
def source_errors(path: str | Path) -> Iterator[None]:
    """Turn an OSError about the source into an InputError if every further try fails alike, else into a StoreError."""
    try:
        with local_errors(path):
            yield
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _LASTING:
            raise InputError(
                f"dataset.source.path: {path}: {cause.strerror}; give this user access to it, or move it elsewhere"
            ) from error
        raise


def file_loader(dataset: DatasetConfig) -> Callable[[Item], UInt8Array]:
    """Return a function that loads image files with this dataset's size and channels."""
    channels = dataset.codec.channels if dataset.codec.kind == "pixels" else 3

    def load(item: Item) -> UInt8Array:
        with source_errors(item.path):
            size = os.stat(item.path).st_size if item.size < 0 else item.size
        if size > MAX_FILE_BYTES:
            raise CorruptImageError(f"{item.name}: has {size:,} bytes, more than the {MAX_FILE_BYTES:,} of an image")
        with one_at_a_time(size):
            data = read_bytes(item.path, item.offset, size)
            return decode_image(data, dataset.image_size, channels, item.name)

    return load


def first_names(names: Iterable[str], shown: int = 5) -> str:
    """Return the first names, and how many more there are, for messages."""
    every = list(names)
    return ", ".join(every[:shown]) + (f" and {len(every) - shown} more" if len(every) > shown else "")


def is_image(name: str) -> bool:
    """Return whether a file name has the extension of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    """Return whether this is the name of a hidden file or folder."""
    return name.startswith(".") and name not in (".", "..")
