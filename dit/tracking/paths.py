"""Where journals and what belongs to them lie on this machine's disk.

In a file store a journal lies under its own key. Of another store there is a folder in the cache that mirrors the
keys, because a journal is appended to.

    studies/<study>/[<variant>/]metrics.jsonl
    studies/<study>/[<variant>/]tracking/writers/<id>       a lease per process that writes to the journal
    studies/<study>/[<variant>/]tracking/files/<sha256>     bytes of artifacts and images
    studies/<study>/[<variant>/]tracking/shipped-<id>.json  how far which server has the journal <id>
    studies/<study>/tracking/...                            besides, the shipper's lock, log and state
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dit.storage import Store, cache_dir
from dit.storage.file import FileStore
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.variants import ModelSpec
from dit.tracking.lock_file import is_held

_TARGET = "target.json"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: a variant's, or, for the parent run, the study's."""

    path: Path

    @property
    def journal(self) -> Path:
        """The journal that is written to."""
        return self.path / layout.JOURNAL

    @property
    def journals(self) -> list[Path]:
        """It, and those that were moved aside."""
        stem, _, suffix = layout.JOURNAL.partition(".")
        return sorted(self.path.glob(f"{stem}*.{suffix}"))

    @property
    def state(self) -> Path:
        """Folder of what the tracker remembers."""
        return self.path / layout.TRACKING_STATE

    @property
    def writers(self) -> Path:
        """Folder of the writers' leases."""
        return self.state / "writers"

    @property
    def files(self) -> Path:
        """Folder of artifacts, by SHA-256."""
        return self.state / "files"

    def shipped(self, journal_id: str) -> Path:
        """File that says how much of a journal has been shipped."""
        return self.state / f"shipped-{journal_id}.json"

    def writer_names(self) -> list[str]:
        """Writers that have not ended in order: living and dead ones."""
        try:
            return sorted(path.name for path in self.writers.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []

    def is_live(self) -> bool:
        """Whether any process writes to the journal."""
        return any(is_held(self.writers / name) for name in self.writer_names())


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study, whose run is the parent of its variants' runs."""

    path: Path

    @property
    def parent(self) -> RunFolder:
        """The study's own run."""
        return RunFolder(self.path)

    @property
    def state(self) -> Path:
        """Folder of the shipper's files."""
        return self.parent.state

    @property
    def target(self) -> Path:
        """File that says where the study is shipped to."""
        return self.state / _TARGET

    def runs(self) -> list[RunFolder]:
        """The study's run and the variants' that have a journal."""
        children = sorted({journal.parent for journal in self.path.glob(f"*/{layout.JOURNAL}")})
        return [run for run in [self.parent, *map(RunFolder, children)] if run.journals]


def tracked_studies(root: Path) -> list[StudyFolder]:
    """The studies below a root that were ever shipped, the latest first."""
    paths = root.glob(f"{layout.STUDIES}/*/{layout.TRACKING_STATE}/{_TARGET}")
    return [StudyFolder(path.parents[1]) for path in sorted(paths, key=lambda path: -path.stat().st_mtime)]


def local_root(store: Store) -> Path:
    """The store's own root where it is a folder, else the cache folder that mirrors its keys."""
    if isinstance(store, FileStore):
        return store.root
    return cache_dir() / "journals" / hashlib.sha256(store.url.encode()).hexdigest()[:16]


def study_folder(config: StudyConfig, store: Store) -> StudyFolder:
    """Where this study's journals lie."""
    return StudyFolder(local_root(store) / layout.study(config))


def run_folder(config: StudyConfig, store: Store, spec: ModelSpec | None) -> RunFolder:
    """Where the journal of a variant, or with None of the study, lies."""
    return RunFolder((local_root(store) / layout.journal(config, spec)).parent)
