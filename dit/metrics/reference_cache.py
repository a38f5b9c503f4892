"""The folder beside the shards in which what a study measures with is kept. Torch-free.

Files are named by their content and records name the files, so that two evaluations that make the same thing at once
leave a record that fits its file, whichever was last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dit.errors import DataError, MissingError
from dit.storage import Store, read_record, sha256_file, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import FileEntry, Record

if TYPE_CHECKING:
    from dit.runtime.distributed import Ranks

RecordT = TypeVar("RecordT", bound=Record)


@dataclass(frozen=True)
class ReferenceFolder:
    """The folder of one dataset, as the ranks of one evaluation see it."""

    config: StudyConfig
    store: Store
    ranks: Ranks

    def has(self, key: str) -> bool:
        """Whether there is something at `key`; the first rank's answer."""
        return self.ranks.broadcast(self.store.exists(key))

    def kept(self, key: str, cls: type[RecordT], make: Callable[[], RecordT | None]) -> RecordT:
        """The record at `key`. Where there is none, all ranks call `make`, and what the first one made is written."""
        if not self.has(key):
            made = make()
            if self.ranks.is_main and made is not None:
                write_record(self.store, key, made)
            self.ranks.barrier()
        record = read_record(self.store, key, cls)
        if record is None:
            raise MissingError(f"{self.store.url}/{key}: was removed while it was needed; run `dit evaluate` again")
        return record

    def add(self, stem: str, suffix: str, data: bytes) -> FileEntry:
        """Write a file whose name ends in its own digest."""
        digest = hashlib.sha256(data).hexdigest()[:12]
        return self.store.write(f"{layout.reference(self.config)}/{stem}-{digest}{suffix}", data)

    def path(self, entry: FileEntry) -> Path:
        """A local path of a file, its SHA-256 checked; DataError when it is damaged."""
        key = f"{layout.reference(self.config)}/{entry.name}"
        path = self.store.local(key, entry.sha256)
        if sha256_file(path) != entry.sha256:
            raise DataError(f"{self.store.url}/{key}: damaged; remove its folder and run `dit evaluate` again")
        return path
