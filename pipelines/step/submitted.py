"""The study of a run: as it is asked for at submission, and as a file in the store that every step reads.

The file is `studies/STUDY/submitted/HASH.yaml`, the whole study with overrides applied and defaults spelled out. Its
name is the hash of its text, so the address in a step's inputs says which study the step ran.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypeVar

from dit.errors import ConfigError, MismatchError, MissingError, StoreError
from dit.results.study_copy import keep_study, key_of
from dit.storage import Store, open_store
from dit.study import layout, study_file
from dit.study.cluster import ClusterConfig
from dit.study.config import StudyConfig
from dit.study.hashing import digest
from pipelines.jobs.names import KFP_POD

T = TypeVar("T")


@dataclass(frozen=True)
class StudyInputs:
    """A compiled study, and what was changed of it when the run was submitted; None is as the study has it."""

    text: str
    """The study file's text."""
    steps: int | None = None
    """Length of training."""
    cfg: float | None = None
    """Scale of classifier-free guidance."""
    samples: int | None = None
    """Images of a sample set."""
    seed: int | None = None
    """Of training."""
    overrides: list[str] = field(default_factory=list)
    """As the command line's --set; these win."""

    def resolve(self, where: str = "study") -> StudyConfig:
        """The study of the run; `where` names it in errors.

        Raises ConfigError where the text or an override is not valid, or changes the seeds of a compiled study.
        """
        own = study_file.load_text(self.text, where=where)
        asked = {
            "train.steps": (self.steps, own.train.steps),
            "sampling.cfg_scale": (self.cfg, own.sampling.cfg_scale),
            "sampling.num_samples": (self.samples, own.sampling.num_samples),
            "train.seed": (self.seed, own.train.seed),
        }
        changed = [f"{key}={value}" for key, (value, default) in asked.items() if value not in (None, default)]
        study = study_file.load_text(self.text, [*changed, *self.overrides], where)
        if {run.slug for run in own.runs} != {run.slug for run in study.runs} and own.variants == study.variants:
            raise ConfigError(
                f"{where}: the pipeline has steps for the seeds {', '.join(map(str, own.train_seeds))}, not for"
                f" {', '.join(map(str, study.train_seeds))}; compile the study with these seeds"
            )
        return study


def address(config: StudyConfig, root: str) -> str:
    """Where the study is in the store at `root`: s3://bucket/prefix/studies/STUDY/submitted/HASH.yaml."""
    return f"{root.rstrip('/')}/{key_of(config)}"


def write(config: StudyConfig, store: Store) -> str:
    """Write the study to its address in the store; returns the address."""
    keep_study(config, store)
    return address(config, store.url)


def read(study: str) -> tuple[StudyConfig, Store, str]:
    """The study at this address, its store and the store's root.

    Raises MissingError where there is none, MismatchError where its text was changed, StoreError where the store is
    away.
    """
    root, studies, name = study.rpartition(f"/{layout.STUDIES}/")
    # The study's own settings are in the store that may be away.
    store = open_root(root, ClusterConfig())
    key = f"{studies[1:]}{name}"

    def read_text() -> str:
        if not store.exists(key):
            raise MissingError(f"{study}: no such study; submit it again, and the step 'merge' writes it")
        return store.read(key).decode()

    text = patiently(read_text, ClusterConfig(), StoreError)
    if digest(text) != PurePosixPath(key).stem:
        raise MismatchError(f"{study}: its text is no longer the one that was submitted; submit the study again")
    return study_file.load_text(text, where=study), store, root


def open_root(root: str, cluster: ClusterConfig) -> Store:
    """The store; see `patiently`."""
    return patiently(lambda: open_store(root), cluster, StoreError)


def patiently(call: Callable[[], T], cluster: ClusterConfig, transient: type[StoreError]) -> T:
    """The result of `call`. In a pod, where nobody looks on, a store that is away or full is waited for."""
    if KFP_POD not in os.environ:
        return call()
    from pipelines.cluster.store_access import waited_for  # the Kubernetes client

    return waited_for(call, cluster, transient)
