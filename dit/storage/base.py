"""What every store offers, and the file handling that stores share. Torch-free.

Keys are relative paths with forward slashes below the store's root. A file becomes visible under its key only when it
is complete, whatever happens to the process that writes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import BinaryIO

from dit.errors import DataError, DitError, InputError, StoreError
from dit.study.layout import MANIFEST, META
from dit.study.records import FileEntry

CHUNK_BYTES = 4 << 20
PARTIAL = ".partial"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Store(ABC):
    """A root under which keys name files. Every method raises StoreError where the store itself fails.

    Stores can be pickled and survive a fork.
    """

    url: str
    """Address of the root; `open_store(url)` opens the same store."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether a complete file has this key; a folder is none."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Bytes of a file; MissingError when there is none."""

    @abstractmethod
    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every file below the folder, by key; files being written are left out."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """All keys below the folder, sorted, relative to the root; files being written are left out."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The content of a file; MissingError when there is none."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> FileEntry:
        """Put a small file in place, atomically. The entry's name is the key's last component."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> FileEntry:
        """Put a copy of a local file in place, atomically. The entry's name is the key's last component."""

    @abstractmethod
    def download(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Put a copy at `path`, atomically; DataError when its SHA-256 is another than given here or at the upload."""

    @abstractmethod
    def local(self, key: str, sha256: str | None = None) -> Path:
        """A local path to read the file from: itself, or a verified copy below `cache_dir()` that is made once.

        Read only. A file that is already local is not hashed again. Raises MissingError, and DataError as `download`.
        """

    @abstractmethod
    def local_folder(self, prefix: str) -> Path:
        """As `local`, for all files of a folder; MissingError when it holds none."""

    @abstractmethod
    def sweep(self, prefix: str) -> None:
        """Free the room of files below a folder that nobody will finish, because their writer was killed."""

    @abstractmethod
    def _remove(self, keys: Sequence[str], prefix: str) -> None:
        """Remove these files, which are all there is below `prefix`."""

    def check_writable(self) -> None:
        """Write and remove a small file; InputError when that fails."""
        key = f"write-check-{secrets.token_hex(6)}"
        try:
            self.write(key, bytes(4096))
            self._remove([key], key)
        except DitError as error:
            raise InputError(f"{self.url}: not writable: {error}") from error

    def delete(self, prefix: str) -> None:
        """Remove a file, or all below a folder; completion marks go first, so that no half-removed folder has one."""
        keys = self.list(prefix)
        if self.exists(prefix):
            keys.append(check_key(self.url, prefix))
        self._remove(sorted(keys, key=lambda key: key.rsplit("/", 1)[-1] not in (META, MANIFEST)), prefix)


def check_key(url: str, key: str) -> str:
    """The key itself; InputError for one that is absolute or leads out of the store."""
    if not key or "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise InputError(f"{url}: {key!r} is no key; give a relative path with forward slashes and without '..'")
    return key


def cache_dir() -> Path:
    """Where copies of remote files are kept: DIT_CACHE, or else `~/.cache/dit-scaling`."""
    return Path(os.environ.get("DIT_CACHE") or Path.home() / ".cache" / "dit-scaling").absolute()


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(where: str, actual: str, expected: str | None) -> None:
    """DataError naming the file when the SHA-256 is not the expected one."""
    if expected is not None and actual != expected:
        raise DataError(
            f"{where}: SHA-256 is {actual[:12]}..., expected {expected[:12]}...;"
            " the file is damaged or was replaced, delete it and run the step that makes it again"
        )


@contextmanager
def local_errors(where: str | Path) -> Iterator[None]:
    """Turn what the operating system says about a local file into a StoreError of one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise StoreError(f"{where}: {reason}; free space there or choose another place, then run again") from error
        raise StoreError(f"{where}: {reason}; check the disk and the permissions, then run again") from error


def place_file(path: Path, fill: Callable[[BufferedRandom], object]) -> None:
    """Let `fill` write a new file, flush it to disk, then rename it to `path`; on any failure nothing is left.

    What a killed process left of the same file before is removed. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_partial(path.parent.glob(f".{_escaped(path.name[:200])}.*{PARTIAL}"))
    temporary, file = _open_temporary(path)
    try:
        # Closing comes after the rename: the lock tells others, until then, that this file has a living writer.
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
    """Whether this is the name of a file that is being written."""
    return name.startswith(".") and name.endswith(PARTIAL)


def sweep_partial(files: Iterable[Path]) -> None:
    """Remove those of these temporaries whose writer is gone, which shows in their lock being free."""
    for leftover in files:
        with suppress(OSError), open(leftover, "rb") as file:
            if _locked(file):
                leftover.unlink()


def copy_hashed(source: BinaryIO, target: BinaryIO | BufferedRandom) -> tuple[int, str]:
    """Copy to the end; the number of bytes and their SHA-256."""
    sha, count = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        sha.update(chunk)
        target.write(chunk)
        count += len(chunk)
    return count, sha.hexdigest()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock between the processes of this machine, for as long as the body runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        # A file system without locks costs a second download at worst, because files are placed atomically.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_temporary(path: Path) -> tuple[Path, BufferedRandom]:
    while True:
        temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}{PARTIAL}")
        file = open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666), "w+b")  # noqa: SIM115
        if _locked(file) is not False and temporary.exists():
            return temporary, file
        # Another process swept the file away in the moment before it was locked.
        file.close()


def _locked(file: BinaryIO | BufferedRandom) -> bool | None:
    """Take the file's lock without waiting; False when another holds it, None where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk before a completion mark that relies on it does.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
