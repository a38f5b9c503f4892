"""A lease on a key of a store: one process at a time does some work, and every reader sees which. Torch-free.

with leased(store, layout.lease(config, spec), "the training of mini-S/2") as lease:
    lease.check()  # from time to time, before something is written
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dit.console import say
from dit.errors import LeaseError, MissingError, StoreError
from dit.storage.base import Store
from dit.storage.periodic import Periodic
from dit.study.records import Record

JOB = "DIT_JOB"
"""Variable of a job's pods with the job's namespace and name; a later pod of the same job continues its work."""
RENEW_SECONDS = 15.0
PATIENCE_SECONDS = 90.0
"""How long a lease that is not renewed is waited for. A living holder is silent for a renewal's interval, a request's
timeout (30 s) and the longest pause before it is sent again (20 s), together 65 s."""
_POLL_SECONDS = 1.0


class LeaseRecord(Record):
    """Who holds a lease. Times are in UTC."""

    holder: str
    """A random name for this taking of the lease."""
    job: str
    """Namespace and name of the job; empty for a process that was started by hand."""
    host: str
    machine: str
    """Boot and process namespace, in which `process` is a number; empty where the system has none."""
    process: int
    began: int
    """Start of the process, which tells it from a later one with its number."""
    since: str
    renewals: int = 0

    def __str__(self) -> str:
        return f"{f'job {self.job}, ' if self.job else ''}process {self.process} on {self.host}, since {self.since}"


class Lease:
    """A lease that this process holds, and that a thread renews until `release`."""

    def __init__(self, store: Store, key: str, record: LeaseRecord) -> None:
        self._store, self._key, self._record = store, key, record
        self._other: LeaseRecord | None = None
        self._periodic = Periodic("lease", RENEW_SECONDS, self._renew)

    def check(self) -> None:
        """Raise LeaseError when another process has taken the lease over; costs nothing otherwise."""
        if self._other is not None:
            raise LeaseError(
                f"{self._store.url}/{self._key}: was taken over by {self._other}, because this process did not renew it"
                " or belongs to the same job; this process stops, that one continues"
            )

    def release(self) -> None:
        """End the lease, so that the next process need not wait."""
        self._periodic.stop()
        try:
            held = read_lease(self._store, self._key)
            if held is not None and held.holder == self._record.holder:
                self._store.delete(self._key)
        except StoreError as error:
            say(f"{self._key}: not released; the next process waits {PATIENCE_SECONDS:g} s for it: {error}")

    def _renew(self) -> None:
        held = read_lease(self._store, self._key)
        if held is not None and held.holder != self._record.holder:
            self._other = held
            return
        # A renewal that failed may have been stored all the same, so `held` counts, not what this process remembers.
        renewed = self._record.model_copy(
            update={"renewals": max(self._record.renewals, held.renewals if held else 0) + 1}
        )
        if self._store.replace(self._key, renewed.to_json(), held.to_json() if held else None):
            self._record = renewed


@contextmanager
def leased(store: Store, key: str, work: str) -> Iterator[Lease]:
    """Hold the lease at `key` while the body runs; `work` names it in messages.

    A lease is taken over at once when its holder was an earlier process of the same job, or a process of this machine
    that has ended. A lease of another machine is taken over when it is not renewed for PATIENCE_SECONDS.

    Raises LeaseError, which names the holder, when it is renewed.
    """
    lease = Lease(store, key, _take(store, key, work))
    try:
        yield lease
    finally:
        lease.release()


def read_lease(store: Store, key: str) -> LeaseRecord | None:
    """Return who holds or held a lease; None when it was released.

    Raises MismatchError or DataError as `Record.from_json`.
    """
    try:
        return LeaseRecord.from_json(store.read(key), f"{store.url}/{key}")
    except MissingError:
        return None


def _take(store: Store, key: str, work: str) -> LeaseRecord:
    mine = _this_process()
    seen: LeaseRecord | None = None
    seen_at = 0.0
    while True:
        held = read_lease(store, key)
        expired = held is not None and held == seen and time.monotonic() - seen_at >= PATIENCE_SECONDS
        if held is None or expired or _has_ended(held, mine):
            if store.replace(key, mine.to_json(), held.to_json() if held else None):
                return mine
        # Whether it is renewed is seen without comparing the clocks of two machines.
        elif seen is not None and seen.holder == held.holder and seen != held:
            raise LeaseError(
                f"{store.url}/{key}: {work} is under way: {held}; wait for it or end it, or use another study name or"
                " root"
            )
        elif held != seen:
            say(f"{work} is or was under way: {held}; waiting up to {PATIENCE_SECONDS:g} s to see whether it continues")
            seen, seen_at = held, time.monotonic()
        time.sleep(_POLL_SECONDS)


def _has_ended(held: LeaseRecord, mine: LeaseRecord) -> bool:
    """Whether the holder is known to be gone, or to be replaced by this process."""
    if held.job and held.job == mine.job:
        return True
    if (held.host, held.machine) != (mine.host, mine.machine):
        return False
    try:
        os.kill(held.process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return held.began != _began(held.process)


def _this_process() -> LeaseRecord:
    return LeaseRecord(
        holder=secrets.token_hex(8),
        job=os.environ.get(JOB, ""),
        host=socket.gethostname(),
        machine=_machine(),
        process=os.getpid(),
        began=_began(os.getpid()),
        since=datetime.now(UTC).isoformat(" ", "seconds"),
    )


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(process: int) -> int:
    """Start of a process in clock ticks since the boot; 0 where the system does not tell."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 0
    # The name, in parentheses, may hold spaces; the start is the 22nd field, the 20th after the name (proc(5)).
    return int(text.rpartition(")")[2].split()[19])
