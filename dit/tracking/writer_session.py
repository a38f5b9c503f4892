"""Which processes write to a journal, and which of them were killed."""

from __future__ import annotations

from typing import Literal

from dit.tracking.journal import Entry, Journal, read_entries
from dit.tracking.lock_file import LockFile
from dit.tracking.paths import RunFolder

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


def status_entry(status: Status, writer: LockFile, error: str | None = None) -> Entry:
    """The line with which a writer starts or ends. It is alive as long as its lock file is held."""
    error_entry = {"error": error} if error else {}
    return Entry("status", {"status": status, "writer": writer.path.name, **error_entry})


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
            journal.append(status_entry("KILLED", lock))
            journal.close()
        lock.release(remove=True)


def _has_ended(run: RunFolder, name: str) -> bool:
    statuses = [entry.values for entry, _ in read_entries(run.journal) if entry.kind == "status"]
    return any(values.get("writer") == name and values.get("status") != "RUNNING" for values in statuses)
