"""Files whose lock says that the process that holds it lives: the kernel frees it however that process ends."""

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
_held: weakref.WeakSet[Lease] = weakref.WeakSet()


class Lease:
    """A file that this process keeps locked until `release`, or until it ends."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle: int | None = handle
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
        _held.add(self)

    @classmethod
    def take(cls, path: Path, patience: float = 0.0) -> Lease | None:
        """Lock this file, made if need be; None when another process still holds it after `patience` seconds."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        deadline = time.monotonic() + patience
        while not _lock(handle, fcntl.LOCK_EX, path):
            if time.monotonic() >= deadline:
                os.close(handle)
                return None
            time.sleep(_RETRY_SECONDS)
        return cls(path, handle)

    @classmethod
    def new(cls, folder: Path) -> Lease:
        """Lock a new file of this folder; it appears there when it is already locked."""
        name = secrets.token_hex(6)
        lease = cls.take(folder / f".{name}")
        if lease is None:
            raise AssertionError("nobody else knows the name")
        lease.path = folder / name
        os.rename(folder / f".{name}", lease.path)
        return lease

    @property
    def name(self) -> str:
        """The file's name, unique among the leases of its folder."""
        return self.path.name

    def is_lost(self) -> bool:
        """Whether the file was removed or replaced, so that others may hold a lease of the same path."""
        try:
            there = os.stat(self.path)
        except OSError:
            return True
        return self._handle is None or not os.path.samestat(there, os.fstat(self._handle))

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
        """Close the file without freeing the lock for whoever else holds it, as a forked child must."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lease."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # A shared lock, so that two processes that ask at the same moment do not take each other for the holder.
        return not _lock(handle, fcntl.LOCK_SH, path)
    finally:
        os.close(handle)


def _lock(handle: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: the process that the file names decides.
        return not _named_process_lives(path)
    return True


def _named_process_lives(path: Path) -> bool:
    host, _, process = path.read_text().partition(" ")
    if not process:
        return False
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _forget_in_child() -> None:
    # A forked child shares the parent's lock and would keep it alive after the parent's death.
    for lease in list(_held):
        lease.abandon()


os.register_at_fork(after_in_child=_forget_in_child)
