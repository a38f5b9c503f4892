"""The interface of stores, and the file handling that they share. Torch-free.

Keys are relative paths with forward slashes below the store's root. A file is visible under its key only when it is
complete, even if its writer is killed.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from dit.errors import DataError, DitError, InputError, StoreError, TransientStoreError, one_line
from dit.study.layout import MANIFEST, META
from dit.study.records import FileEntry

CHUNK_BYTES = 4 << 20
PARTIAL = ".partial"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SET_CACHE = "set DIT_CACHE to a folder that can be written"
_TRANSIENT = {errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN}


class Store(ABC):
    """Files below a root, by key. Stores can be pickled and survive a fork.

    Every method raises StoreError when the store fails. Methods that read a file raise MissingError if there is none.
    """

    url: str
    """Address of the root; `open_store(url)` opens the same store."""

    def place(self, key: str = "") -> str:
        """Where a key is, for messages: a path as a shell takes it, or the address in a remote store."""
        parts = urlsplit(self.url)
        return shlex.quote(str(Path(unquote(parts.path)) / key)) if parts.scheme == "file" else f"{self.url}/{key}"

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is a complete file with this key; False for a folder."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Key -> bytes of every file below a folder, except files that are being written."""

    def list(self, prefix: str = "") -> list[str]:
        """The sorted keys of `sizes`."""
        return sorted(self.sizes(prefix))

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The content of a file."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> FileEntry:
        """Write a small file, atomically. The entry's name is the last component of the key."""

    @abstractmethod
    def replace(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """Write a small file only if its content is still `expected`; None: only if there is no file.

        Returns whether the file now holds `data`. It is one step where the store can do that: S3's conditional writes,
        or locks of the file system. Elsewhere another writer can come between, so read the file again later.
        """

    @abstractmethod
    def upload(self, path: Path, key: str) -> FileEntry:
        """Copy a local file into the store, atomically. The entry's name is the last component of the key."""

    @abstractmethod
    def download(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Copy a file to `path`, atomically.

        Raises DataError when its SHA-256 is not `sha256`, or else the one recorded by the upload.
        """

    @abstractmethod
    def local(self, key: str, sha256: str | None = None) -> Path:
        """A local path for reading: the file itself, which is not hashed again, or a verified copy in `cache_dir()`.

        The copy is made once. Raises DataError as `download`.
        """

    @abstractmethod
    def local_folder(self, prefix: str) -> Path:
        """Like `local`, for all files of a folder. Raises MissingError when the folder has no files."""

    @abstractmethod
    def sweep(self, prefix: str) -> None:
        """Remove what killed writers left below a folder."""

    @abstractmethod
    def _remove(self, keys: Sequence[str], prefix: str) -> None:
        """Remove these files; there are no others below `prefix`."""

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises TransientStoreError when the store is full or away, InputError when it cannot be written at all.
        """
        key = f"write-check-{secrets.token_hex(6)}"
        try:
            self.write(key, bytes(4096))
            self._remove([key], key)
        except TransientStoreError:
            raise
        except DitError as error:
            raise InputError(f"{self.url}: not writable: {error}") from error

    def delete(self, prefix: str) -> None:
        """Remove a file, or all files of a folder: completion marks first, so that no half-removed folder has one."""
        keys = self.list(prefix)
        if self.exists(prefix):
            keys.append(check_key(self.url, prefix))
        self._remove(sorted(keys, key=lambda key: key.rsplit("/", 1)[-1] not in (META, MANIFEST)), prefix)


def check_key(url: str, key: str) -> str:
    """The key itself.

    Raises InputError for a key that is absolute or leads out of the store.
    """
    if not key or "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise InputError(f"{url}: {key!r} is not a valid key; give a relative path with forward slashes, without '..'")
    return key


def cache_dir() -> Path:
    """Folder for copies of remote files: DIT_CACHE, or else `~/.cache/dit-scaling`.

    Raises InputError when neither DIT_CACHE nor a home folder is known.
    """
    try:
        return Path(os.environ.get("DIT_CACHE") or Path.home() / ".cache" / "dit-scaling").absolute()
    except RuntimeError as error:
        raise InputError(f"the cache has no place: {one_line(error)} {_SET_CACHE}") from error


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(where: str, actual: str, expected: str | None) -> None:
    """Compare a file's SHA-256 with the expected one; None accepts any.

    Raises DataError when they differ.
    """
    if expected is not None and actual != expected:
        raise DataError(
            f"{where}: SHA-256 is {actual[:12]}..., expected {expected[:12]}...;"
            " the file is damaged or was replaced: delete it and run the step that makes it"
        )


@contextmanager
def local_errors(where: str | Path) -> Iterator[None]:
    """Turn an OSError about a local file into a StoreError of one line."""
    try:
        yield
    except OSError as error:
        kind = TransientStoreError if error.errno in _TRANSIENT else StoreError
        raise kind(f"{where}: {error.strerror or error}; {_remedy(error, where)}, then run again") from error


def _remedy(error: OSError, where: str | Path) -> str:
    in_cache, is_full = Path(where).is_relative_to(cache_dir()), error.errno in _FULL
    if in_cache:
        return f"free space there or {_SET_CACHE}" if is_full else _SET_CACHE
    return "free space there or choose another place" if is_full else "check the disk and the permissions"


def place_file(path: Path, fill: Callable[[BufferedRandom], object]) -> None:
    """Let `fill` write a temporary file, flush it to disk, and rename it to `path`; after a failure nothing is left.

    Temporary files of killed writers of the same path are removed first. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_partial(path.parent.glob(f".{glob.escape(path.name[:200])}.*{PARTIAL}"))
    temporary, file = _open_temporary(path)
    try:
        # Closed after the rename: until then, the lock keeps other processes from removing this file as a leftover.
        with file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def is_partial(name: str) -> bool:
    """Whether this is the name of a temporary file of `place_file`."""
    return name.startswith(".") and name.endswith(PARTIAL)


def sweep_partial(files: Iterable[Path]) -> None:
    """Remove the temporary files whose writer is gone: their lock is free."""
    for leftover in files:
        with suppress(OSError), open(leftover, "rb") as file:
            if _locked(file):
                leftover.unlink()


def copy_hashed(source: BinaryIO, target: BinaryIO | BufferedRandom) -> tuple[int, str]:
    """Copy to the end of `source`; returns the number of bytes and their SHA-256."""
    sha, count = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        sha.update(chunk)
        target.write(chunk)
        count += len(chunk)
    return count, sha.hexdigest()


@contextmanager
def exclusive(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Hold a lock between the processes of this machine while the body runs.

    `waiting` is printed if another process holds it. On a file system without locks nothing is held: the worst is that
    work is done twice, because files are placed atomically.

    Raises StoreError when the lock's file cannot be made.
    """
    with local_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 - closed below
    with file:
        if waiting and _locked(file) is False:
            sys.stdout.write(f"{waiting}\n")
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder itself, which needs no file in it, while the body runs; nothing without such locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _open_temporary(path: Path) -> tuple[Path, BufferedRandom]:
    while True:
        temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}{PARTIAL}")
        file = open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666), "w+b")  # noqa: SIM115
        if _locked(file) is not False and temporary.exists():
            return temporary, file
        # Another process removed the file just before it was locked.
        file.close()


def _locked(file: BinaryIO | BufferedRandom) -> bool | None:
    """Take the file's lock without waiting; False if another process holds it, None if there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sync_folder(folder: Path) -> None:
    # The rename must be on disk before the completion mark of its folder is.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
