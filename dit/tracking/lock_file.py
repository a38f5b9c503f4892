"""Lock files. The kernel frees a lock however its process ends, so a held lock shows that the process is alive."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path

_RETRY_SECONDS = 0.05
_held: weakref.WeakSet[LockFile] = weakref.WeakSet()


class LockFile:
    """A file that this process keeps locked until `release`, or until it ends."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle: int | None = handle
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
        _held.add(self)

    @classmethod
    def take(cls, path: Path, timeout: float = 0.0) -> LockFile | None:
        """Create the file if needed and lock it; None if another process still holds it after `timeout` seconds."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        deadline = time.monotonic() + timeout
        while not _lock(handle, fcntl.LOCK_EX, path):
            if time.monotonic() >= deadline:
                os.close(handle)
                return None
            time.sleep(_RETRY_SECONDS)
        return cls(path, handle)

    @classmethod
    def new(cls, folder: Path) -> LockFile:
        """A new file in this folder, which appears there already locked."""
        name = secrets.token_hex(6)
        lock = cls.take(folder / f".{name}")
        if lock is None:
            raise AssertionError("another process locked a file with a random name")
        lock.path = folder / name
        os.rename(folder / f".{name}", lock.path)
        return lock

    def is_lost(self) -> bool:
        """Whether the file was removed or replaced, so that another process may hold a lock at the same path."""
        try:
            current = os.stat(self.path)
        except OSError:
            return True
        return self._handle is None or not os.path.samestat(current, os.fstat(self._handle))

    def release(self, *, remove: bool = False) -> None:
        """Free the lock; a second call does nothing."""
        if self._handle is None:
            return
        with suppress(OSError):
            if remove:
                self.path.unlink()
            fcntl.flock(self._handle, fcntl.LOCK_UN)
        self.abandon()

    def abandon(self) -> None:
        """Close the file without freeing the lock, which the parent of a forked child still holds."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # A shared lock: two processes that check at the same moment must not take each other for the holder.
        return not _lock(handle, fcntl.LOCK_SH, path)
    finally:
        os.close(handle)


def _lock(handle: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # The file system has no locks: check the process that the file names.
        return not _named_process_is_alive(path)
    return True


def _named_process_is_alive(path: Path) -> bool:
    host, _, process = path.read_text().partition(" ")
    if not process or host != socket.gethostname():
        return bool(process)
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _abandon_in_child() -> None:
    # A forked child shares its parent's lock and would keep it after the parent's death.
    for lock in list(_held):
        lock.abandon()


os.register_at_fork(after_in_child=_abandon_in_child)
