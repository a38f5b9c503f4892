"""A copy, in the store, of a journal that lies on this machine's disk only; nothing to do where the store is a folder.

A run that goes on at another machine finds its points there.
"""

from __future__ import annotations

import threading
from pathlib import Path

from dit.console import say
from dit.errors import MissingError, StoreError
from dit.storage import Store
from dit.storage.file import FileStore
from dit.tracking.journal import Journal, aside, header_of
from dit.tracking.paths import RunFolder, local_root


class Mirror:
    """One run's journal and its files in the store."""

    def __init__(self, store: Store, run: RunFolder) -> None:
        self._store, self._run = store, run
        self._prefix = run.path.relative_to(local_root(store)).as_posix()
        self._sent: set[Path] = set()
        self._lock = threading.Lock()
        self.is_needed = not isinstance(store, FileStore)

    def fetch(self) -> bytes | None:
        """The store's copy of the journal, empty when there is none; None where the journal lies in the store."""
        if not self.is_needed:
            return None
        return self._read(self._run.journal)

    def fetch_file(self, path: Path) -> bytes:
        """The bytes of one of the run's files, from the store when they are not here; empty when nowhere."""
        return path.read_bytes() if path.exists() else self._read(path)

    def push(self, journal: Journal, timeout: float) -> None:
        """Bring the store's copy up to date, keeping what another machine put there.

        Returns after `timeout` seconds even when the store does not answer; what fails is said and left to the next
        call.
        """
        if not self.is_needed:
            return
        thread = threading.Thread(target=self._push, args=(journal,), name="journal-mirror", daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            say(f"tracking: {self._store.url} has not taken the journal's copy within {timeout:g} s; it is still tried")

    def _push(self, journal: Journal) -> None:
        try:
            with self._lock:
                for path in sorted(set(self._run.files.glob("*")) - self._sent):
                    if not self._store.exists(self._key(path)):
                        self._store.write(self._key(path), path.read_bytes())
                    self._sent.add(path)
                self._push_journal(journal)
        except StoreError as error:
            say(f"tracking: the journal's copy in the store is behind: {error}")

    def _push_journal(self, journal: Journal) -> None:
        copy = self._read(journal.path)
        theirs, ours = header_of(copy), journal.header()
        if theirs is not None and theirs.values["id"] != ours.values["id"]:
            self._store.write(self._key(aside(journal.path, theirs)), copy)
        elif copy:
            journal.absorb(copy)
        self._store.write(self._key(journal.path), journal.path.read_bytes())

    def _read(self, path: Path) -> bytes:
        try:
            return self._store.read(self._key(path))
        except MissingError:
            return b""

    def _key(self, path: Path) -> str:
        return f"{self._prefix}/{path.relative_to(self._run.path).as_posix()}"
