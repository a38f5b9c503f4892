"""The copy of a journal in a remote store, from which another machine continues the run. A file store needs none."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path

from dit.console import say
from dit.errors import MissingError, StoreError
from dit.storage import Store
from dit.study import layout
from dit.tracking.journal import Journal, aside, header_of, is_digest, open_journal
from dit.tracking.paths import RunFolder, is_mirrored, local_root

_KEY = re.compile(rf"{layout.STUDIES}(/[a-z0-9][a-z0-9.-]*){{1,2}}/metrics(-[A-Za-z0-9_.-]+)?\.jsonl", re.IGNORECASE)
"""Keys of journals, and of those that were moved aside."""


class StoreCopy:
    """The copy of one run's journal and of its files."""

    def __init__(self, store: Store, run: RunFolder) -> None:
        self._store, self._run = store, run
        self._prefix = run.path.relative_to(local_root(store)).as_posix()
        self._sent: set[Path] = set()
        self._lock = threading.Lock()
        self.is_needed = is_mirrored(store)

    def fetch(self) -> bytes | None:
        """The journal's copy, empty if there is none; None if the journal itself is in the store."""
        return self._read(self._run.journal) if self.is_needed else None

    def fetch_file(self, digest: str) -> bytes:
        """Content of the run's file with this SHA-256, from the store if it is not on this machine.

        Empty if it is lost, or if the file at its place has other content.
        """
        if not is_digest(digest):
            return b""
        path = self._run.files / digest
        data = path.read_bytes() if path.is_file() else self._read(path)
        return data if hashlib.sha256(data).hexdigest() == digest else b""

    def push(self, journal: Journal, timeout: float) -> None:
        """Update the copy and keep the lines that another machine added to it.

        Returns after `timeout` seconds even if the store does not answer. A failure is printed and left to the next
        call.
        """
        if not self.is_needed:
            return
        thread = threading.Thread(target=self._push, args=(journal,), name="journal-copy", daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            say(f"tracking: {self._store.url} has not taken the journal's copy within {timeout:g} s; still trying")

    def _push(self, journal: Journal) -> None:
        try:
            with self._lock:
                for path in sorted(set(self._run.files.glob("*")) - self._sent):
                    if not self._store.exists(self._key(path)):
                        self._store.write(self._key(path), path.read_bytes())
                    self._sent.add(path)
                self._push_journal(journal)
        except StoreError as error:
            say(f"tracking: the journal's copy in the store is out of date: {error}")

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


def fetch_journals(store: Store) -> None:
    """Bring this machine's copies of all journals in a remote store up to date."""
    if not is_mirrored(store):
        return
    for key in store.list(layout.STUDIES):
        # Whoever writes to the bucket chooses the keys, which become paths on this machine.
        if _KEY.fullmatch(key) and (header := header_of(copy := store.read(key))):
            open_journal(local_root(store) / key, header.values["hash"], {}, copy).close()
