"""Who writes to a journal, and how a writer that was killed is told from one that ended."""

from __future__ import annotations

from typing import Literal

from dit.tracking.journal import Entry, Journal, read_entries
from dit.tracking.lock_file import Lease
from dit.tracking.paths import RunFolder

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class Writer:
    """This process as a writer of a run's journal; it counts as living from construction until `end`, or its death."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._lease = Lease.new(run.writers)

    def begin(self, journal: Journal) -> None:
        """Say in the journal that the run goes on."""
        journal.append(_status("RUNNING", self._lease.name))

    def withdraw(self) -> None:
        """Not to have been, when it could not begin."""
        self._lease.release(remove=True)

    def end(self, journal: Journal, status: Status, error: str | None = None) -> None:
        """Say in the journal how it ended."""
        try:
            journal.append(_status(status, self._lease.name, error))
        finally:
            self._lease.release(remove=True)


def close_dead_writers(run: RunFolder) -> int:
    """Write KILLED into the journal for every writer that died without a last word; how many there were."""
    count = 0
    for name in run.writer_names():
        path = run.writers / name
        # Whoever holds a dead writer's lease writes its last line, so that two processes do not both do it.
        lease = Lease.take(path) if path.exists() else None
        if lease is None:
            continue
        if not _has_ended(run, name):
            journal = Journal(run.journal)
            journal.append(_status("KILLED", name))
            journal.close()
            count += 1
        lease.release(remove=True)
    return count


def _has_ended(run: RunFolder, name: str) -> bool:
    statuses = [entry.values for entry, _ in read_entries(run.journal) if entry.kind == "status"]
    return any(values.get("writer") == name and values.get("status") != "RUNNING" for values in statuses)


def _status(status: Status, writer: str, error: str | None = None) -> Entry:
    return Entry("status", {"status": status, "writer": writer, **({"error": error} if error else {})})
