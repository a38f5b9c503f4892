"""Which processes write to a journal, and which of them were killed."""

from __future__ import annotations

from typing import Literal

from dit.tracking.journal import Entry, Journal, read_entries
from dit.tracking.lock_file import LockFile
from dit.tracking.paths import RunFolder

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class Writer:
    """This process as a writer of a run's journal; alive from construction until `end`, or until the process ends."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._lock = LockFile.new(run.writers)

    def begin(self, journal: Journal) -> None:
        """Write to the journal that the run goes on."""
        journal.append(_status("RUNNING", self._lock.path.name))

    def withdraw(self) -> None:
        """Release the lock without writing a status: this writer never started."""
        self._lock.release(remove=True)

    def end(self, journal: Journal, status: Status, error: str | None = None) -> None:
        """Write to the journal how it ended."""
        try:
            journal.append(_status(status, self._lock.path.name, error))
        finally:
            self._lock.release(remove=True)


def close_dead_writers(run: RunFolder) -> None:
    """Write KILLED into the journal for every writer that ended without writing a status."""
    for name in run.writer_names():
        path = run.writers / name
        # Only the process that gets the dead writer's lock writes its status, so that it is written once.
        lock = LockFile.take(path) if path.exists() else None
        if lock is None:
            continue
        if not _has_ended(run, name):
            journal = Journal(run.journal)
            journal.append(_status("KILLED", name))
            journal.close()
        lock.release(remove=True)


def _has_ended(run: RunFolder, name: str) -> bool:
    statuses = [entry.values for entry, _ in read_entries(run.journal) if entry.kind == "status"]
    return any(values.get("writer") == name and values.get("status") != "RUNNING" for values in statuses)


def _status(status: Status, writer: str, error: str | None = None) -> Entry:
    return Entry("status", {"status": status, "writer": writer, **({"error": error} if error else {})})
