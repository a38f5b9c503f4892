"""Whether a local file is the one a record describes; each copy is hashed once, not at every start."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dit.console import progress
from dit.errors import DataError
from dit.storage.base import cache_dir, exclusive, local_errors, place_file, sha256_file

# Hashing this much takes long enough that a bar is welcome.
_SHOWN_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Expected:
    """A file as its record describes it."""

    name: str
    """What messages call it: its address in the store."""
    path: Path
    sha256: str
    bytes: int | None = None


def verify_files(files: list[Expected], *, show: bool) -> None:
    """Hash every file that was not hashed since it last changed; DataError naming the first that is not as expected."""
    unknown = [file for file in files if not _is_stamped(file)]
    if not unknown:
        return
    show = show and sum(file.path.stat().st_size for file in unknown) >= _SHOWN_BYTES
    # SHA-256 runs without the interpreter lock.
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        progress("verify shards", total=len(unknown), unit="files", enabled=show) as bar,
    ):
        for _ in pool.map(_verify, unknown):
            bar.advance(1)


def _verify(file: Expected) -> None:
    # Of the processes that start on a machine together, the first hashes a file and the others find its stamp. Where
    # the cache cannot be written, all of them hash it, now and at the next start, and nothing else is lost.
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(exclusive(_stamp_path(file).with_suffix(".lock")))
        if not _is_stamped(file):
            stamp = _check(file)
            with suppress(OSError):
                place_file(_stamp_path(file), lambda target: _fill(target, stamp))


def _check(file: Expected) -> bytes:
    """The stamp of a file that is as expected; it is taken first, so that a later change does not go unseen."""
    with local_errors(file.path):
        stamp = _stamp(file)
        actual_bytes = file.path.stat().st_size
        if file.bytes is not None and actual_bytes != file.bytes:
            raise _damaged(file, f"{actual_bytes} bytes, should have {file.bytes}")
        actual = sha256_file(file.path)
    if actual != file.sha256:
        raise _damaged(file, f"SHA-256 is {actual[:12]}..., should be {file.sha256[:12]}...")
    return stamp


def _fill(target: BinaryIO, data: bytes) -> None:
    target.write(data)


def _damaged(file: Expected, what: str) -> DataError:
    return DataError(f"{file.name}: {what}: truncated or altered; delete {file.path} and run `dit prepare` again")


def _is_stamped(file: Expected) -> bool:
    with suppress(OSError):
        return _stamp_path(file).read_bytes() == _stamp(file)
    return False


def _stamp(file: Expected) -> bytes:
    """Changes whenever the file does, or is expected to be another."""
    state = file.path.stat()
    return (
        f"{file.path} {state.st_size} {state.st_mtime_ns} {state.st_ino} {state.st_ctime_ns} {file.sha256}\n".encode()
    )


def _stamp_path(file: Expected) -> Path:
    return cache_dir() / "verified" / hashlib.sha256(str(file.path).encode()).hexdigest()[:32]
