"""Compares local files with the hashes in records; an unchanged file is hashed once, not at every start."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from dit.console import progress
from dit.errors import DataError, StoreError
from dit.storage.base import cache_dir, exclusive, local_errors, place_file, sha256_file

# Bytes whose hashing takes long enough for a progress bar.
_SHOWN_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Expected:
    """A local file, and its hash in the record."""

    name: str
    """Its address in the store, for messages."""
    path: Path
    sha256: str


def verify_files(files: list[Expected], *, show: bool) -> None:
    """Hash every file that changed since it was last hashed. `show` draws a bar if this takes long.

    Raises DataError, which names the file, when its hash differs from the record.
    """
    unknown = [file for file in files if not _is_stamped(file)]
    if not unknown:
        return
    show = show and sum(file.path.stat().st_size for file in unknown) >= _SHOWN_BYTES
    # SHA-256 releases the interpreter lock, so threads use all cores.
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        progress("verify shards", total=len(unknown), unit="files", enabled=show) as bar,
    ):
        for _ in pool.map(_verify, unknown):
            bar.advance(1)


def _verify(file: Expected) -> None:
    # Of the ranks that start together on a machine, one takes the lock and hashes the file; the others find its stamp.
    # If the cache cannot be written, every rank hashes it at every start.
    with ExitStack() as stack:
        with suppress(StoreError):
            stack.enter_context(exclusive(_stamp_path(file).with_suffix(".lock")))
        if not _is_stamped(file):
            stamp = _check(file)
            with suppress(OSError):
                place_file(_stamp_path(file), lambda target: target.write(stamp))


def _check(file: Expected) -> bytes:
    """Return the stamp of an intact file."""
    with local_errors(file.path):
        # Taken before the file is hashed, so a change in between gives another stamp.
        stamp = _stamp(file)
        actual = sha256_file(file.path)
    if actual != file.sha256:
        raise DataError(
            f"{file.name}: SHA-256 is {actual[:12]}... instead of {file.sha256[:12]}...: damaged; delete {file.path}"
            " and run `dit prepare` again"
        )
    return stamp


def _is_stamped(file: Expected) -> bool:
    with suppress(OSError):
        return _stamp_path(file).read_bytes() == _stamp(file)
    return False


def _stamp(file: Expected) -> bytes:
    """Return bytes that change with the file, its path and the expected hash."""
    state = file.path.stat()
    return (
        f"{file.path} {state.st_size} {state.st_mtime_ns} {state.st_ino} {state.st_ctime_ns} {file.sha256}\n".encode()
    )


def _stamp_path(file: Expected) -> Path:
    return cache_dir() / "verified" / hashlib.sha256(str(file.path).encode()).hexdigest()[:32]
