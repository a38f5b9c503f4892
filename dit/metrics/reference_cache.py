"""The folder beside the shards that keeps the extractor, reference and noise floor of a dataset. Torch-free.

File names contain a hash of the content, and records name their files. If two evaluations write at the same moment,
each record therefore matches its file, whichever is written last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dit.console import say
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
    """The folder of one dataset, used by all ranks of one evaluation together."""

    config: StudyConfig
    store: Store
    ranks: Ranks

    def has(self, key: str) -> bool:
        """Whether the store has `key`; all ranks get the answer of the first."""
        return self.ranks.broadcast(self.store.exists(key))

    def kept(self, key: str, cls: type[RecordT], make: Callable[[], RecordT | None]) -> RecordT:
        """The record at `key`. If it or its file is gone, all ranks call `make`, and the first's record is written.

        Raises MissingError when the record is removed meanwhile.
        """
        if not self.ranks.broadcast(self.ranks.is_main and self._is_whole(key, cls)):
            made = make()
            if self.ranks.is_main and made is not None:
                write_record(self.store, key, made)
            self.ranks.barrier()
        record = read_record(self.store, key, cls)
        if record is None:
            raise MissingError(f"{self.store.place(key)}: removed during the evaluation; run `dit evaluate` again")
        return record

    def _is_whole(self, key: str, cls: type[RecordT]) -> bool:
        record = read_record(self.store, key, cls)
        file = getattr(record, "file", None)
        if file is None or self.store.exists(f"{layout.reference(self.config)}/{file.name}"):
            return record is not None
        say(f"{self.store.place(key)}: its file {file.name} is gone; making it again")
        return False

    def add(self, stem: str, suffix: str, data: bytes) -> FileEntry:
        """Write a file whose name ends in the hash of its content."""
        digest = hashlib.sha256(data).hexdigest()[:12]
        return self.store.write(f"{layout.reference(self.config)}/{stem}-{digest}{suffix}", data)

    def path(self, entry: FileEntry) -> Path:
        """A local path of a file, its SHA-256 checked.

        Raises DataError when the file is damaged.
        """
        folder = layout.reference(self.config)
        key = f"{folder}/{entry.name}"
        path = self.store.local(key, entry.sha256)
        if sha256_file(path) != entry.sha256:
            remedy = f"remove {self.store.place(folder)} and run `dit evaluate` again"
            raise DataError(f"{self.store.place(key)}: damaged; {remedy}")
        return path
