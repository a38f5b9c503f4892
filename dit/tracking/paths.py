"""Paths of journals and of the tracker's files on this machine's disk.

In a file store a journal has its own key. For a remote store, a folder in the cache mirrors the keys, because a journal
is appended to.

    studies/<study>/[<variant>/]metrics.jsonl
    studies/<study>/[<variant>/]tracking/writers/<id>    a lock file per process that writes to the journal
    studies/<study>/[<variant>/]tracking/files/<sha256>  content of artifacts and images
    studies/<study>/tracking/shipper.{lock,json,log}     of the study's shipper; json: its progress
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from dit.storage import Store, cache_dir
from dit.storage.file import FileStore
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.runs import Run
from dit.tracking.lock_file import is_held

JOURNALS = "metrics*.jsonl"
"""Pattern of the current journal and of those that were moved aside."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: a variant's, or the study's for the parent run."""

    path: Path

    @property
    def journal(self) -> Path:
        """The journal that is written to."""
        return self.path / layout.JOURNAL

    @property
    def journals(self) -> list[Path]:
        """The current journal and those that were moved aside."""
        return sorted(self.path.glob(JOURNALS))

    @property
    def state(self) -> Path:
        """Folder of the tracker's own files."""
        return self.path / layout.TRACKING_STATE

    @property
    def writers(self) -> Path:
        """Folder of the writers' lock files."""
        return self.state / "writers"

    @property
    def files(self) -> Path:
        """Folder of artifacts, by SHA-256."""
        return self.state / "files"

    def writer_names(self) -> list[str]:
        """Writers, living or dead, that have not written how they ended."""
        try:
            return sorted(path.name for path in self.writers.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []

    def is_live(self) -> bool:
        """Whether any process writes to the journal."""
        return any(is_held(self.writers / name) for name in self.writer_names())


@dataclass(frozen=True)
class StudyFolder(RunFolder):
    """The folder of a study, whose run is the parent of its variants' runs."""

    @property
    def lock(self) -> Path:
        """Held by the one process that ships this study."""
        return self.state / "shipper.lock"

    @property
    def log(self) -> Path:
        """Output of that process."""
        return self.state / "shipper.log"

    def runs(self) -> list[RunFolder]:
        """The study's run and the variants' that have a journal."""
        children = sorted({journal.parent for journal in self.path.glob(f"*/{layout.JOURNAL}")})
        return [run for run in [self, *map(RunFolder, children)] if run.journals]


def tracked_studies(root: Path) -> list[StudyFolder]:
    """The studies below a root that have a journal, the one that was written to last first."""
    latest: dict[Path, float] = {}
    studies = root / layout.STUDIES
    for journal in [*studies.glob(f"*/{layout.JOURNAL}"), *studies.glob(f"*/*/{layout.JOURNAL}")]:
        study = studies / journal.relative_to(studies).parts[0]
        latest[study] = max(latest.get(study, 0.0), journal.stat().st_mtime)
    return [StudyFolder(study) for study in sorted(latest, key=lambda study: -latest[study])]


def local_root(store: Store) -> Path:
    """The store's own root if it is a folder, else the cache folder that mirrors its keys.

    A folder that cannot be written, on a read-only file system for example, is mirrored, too.
    """
    if isinstance(store, FileStore) and (not store.root.exists() or os.access(store.root, os.W_OK)):
        return store.root
    return cache_dir() / "journals" / hashlib.sha256(store.url.encode()).hexdigest()[:16]


def is_mirrored(store: Store) -> bool:
    """Whether journals are in the cache, and their copies in the store."""
    return not isinstance(store, FileStore) or local_root(store) != store.root


def study_folder(config: StudyConfig, store: Store) -> StudyFolder:
    """The folder of this study's journals."""
    return StudyFolder(local_root(store) / layout.study(config))


def run_folder(config: StudyConfig, store: Store, study_run: Run | None) -> RunFolder:
    """The folder of a variant's journal, or of the study's for None."""
    return RunFolder((local_root(store) / layout.journal(config, study_run)).parent)
