"""A store in a local folder or on a mounted file system. Torch-free."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from io import BufferedRandom
from pathlib import Path

from dit.errors import InputError, MissingError
from dit.storage.base import (
    PARTIAL,
    Store,
    check_key,
    copy_hashed,
    is_partial,
    local_errors,
    locked_folder,
    place_file,
    sweep_partial,
    verify,
)
from dit.study.records import FileEntry


class FileStore(Store):
    """Files below a root folder, which the first write creates."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.url = self.root.as_uri()
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root}: is a file, but a store needs a folder; give another root")

    def exists(self, key: str) -> bool:
        with local_errors(path := self._path(key)):
            return path.is_file()

    def size(self, key: str) -> int:
        with local_errors(path := self._existing(key)):
            return path.stat().st_size

    def sizes(self, prefix: str = "") -> dict[str, int]:
        top = self._path(prefix.rstrip("/")) if prefix else self.root
        sizes = {}
        with local_errors(top):
            for folder, _, names in os.walk(top, onerror=_raise_unless_missing):
                for path in (Path(folder, name) for name in names if not is_partial(name)):
                    # Another process may remove a file after it was listed.
                    with suppress(FileNotFoundError):
                        sizes[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return sizes

    def read(self, key: str) -> bytes:
        with local_errors(path := self._existing(key)):
            return path.read_bytes()

    def write(self, key: str, data: bytes) -> FileEntry:
        with local_errors(path := self._path(key)):
            place_file(path, lambda file: file.write(data))
        return FileEntry(name=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def replace(self, key: str, data: bytes, expected: bytes | None) -> bool:
        with local_errors(path := self._path(key)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked_folder(path.parent):
                if (path.read_bytes() if path.is_file() else None) != expected:
                    return False
                place_file(path, lambda file: file.write(data))
                return True

    def upload(self, path: Path, key: str) -> FileEntry:
        target = self._path(key)
        count, sha256 = _copy(path, target)
        return FileEntry(name=target.name, bytes=count, sha256=sha256)

    def download(self, key: str, path: Path, sha256: str | None = None) -> None:
        _copy(self._existing(key), path, sha256)

    def local(self, key: str, sha256: str | None = None) -> Path:  # noqa: ARG002
        return self._existing(key)

    def local_folder(self, prefix: str) -> Path:
        if not self.sizes(prefix):
            raise MissingError(f"{self.root / prefix}: no files there; put the folder there or give another address")
        return self.root / prefix

    def sweep(self, prefix: str) -> None:
        with local_errors(top := self._path(prefix)):
            sweep_partial(top.rglob(f".*{PARTIAL}"))

    def _remove(self, keys: Sequence[str], prefix: str) -> None:
        for key in keys:
            with local_errors(path := self._path(key)), suppress(FileNotFoundError):
                path.unlink()
        folder = self._path(prefix.rstrip("/"))
        with local_errors(folder), suppress(FileNotFoundError):
            if folder.is_dir():
                shutil.rmtree(folder)

    def _path(self, key: str) -> Path:
        return self.root / check_key(self.url, key)

    def _existing(self, key: str) -> Path:
        with local_errors(path := self._path(key)):
            if path.is_file():
                return path
        raise MissingError(f"{path}: no such file; run the step that makes it, or check the root")


def _copy(source: Path, target: Path, expected: str | None = None) -> tuple[int, str]:
    """Copy a file atomically; returns the number of bytes and their SHA-256, which must be `expected`."""
    result = (0, "")

    def fill(file: BufferedRandom) -> None:
        nonlocal result
        with open(source, "rb") as reader:
            result = copy_hashed(reader, file)
        verify(str(source), result[1], expected)

    with local_errors(source):
        source.stat()
    with local_errors(target):
        place_file(target, fill)
    return result


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
