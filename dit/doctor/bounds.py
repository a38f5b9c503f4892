"""Opens the dataset with which a checkpoint is examined."""

from __future__ import annotations

from pathlib import Path

from dit.data.measure import load_bounds
from dit.doctor.subject import Subject, is_study_file
from dit.errors import MismatchError, MissingError
from dit.health.bounds import Bounds
from dit.results.stages import Work
from dit.storage import open_store
from dit.study import layout
from dit.study.study_file import load


def open_bounds(dataset: str | None, subject: Subject, root: str) -> Bounds | None:
    """Return the measured dataset: of a study file below `root`, of a prepared dataset's folder, or the subject's own.

    Raises MissingError when a given dataset is not prepared and measured.
    Raises MismatchError when its latents do not fit the model.
    """
    if dataset is None:
        known = subject.config is not None and subject.store is not None
        found = load_bounds(Work(subject.config, subject.store)) if known else None  # type: ignore[arg-type]
        return found if found is not None and _fits(found, subject) else None
    if is_study_file(dataset):
        found = load_bounds(Work(load(Path(dataset), []), open_store(root)))
    else:
        store = open_store(dataset)
        there = store.exists(layout.BOUNDS_FILE)
        found = Bounds.from_bytes(store.read(layout.BOUNDS_FILE), store.place(layout.BOUNDS_FILE)) if there else None
    if found is None:
        raise MissingError(
            f"--dataset {dataset}: is not a prepared dataset with {layout.BOUNDS_FILE}; run `dit prepare STUDY`, and"
            " give its --root"
        )
    if not _fits(found, subject):
        given = f"{len(found.mean_C)}x{found.probe_NCHW.shape[-1]}x{found.probe_NCHW.shape[-1]}"
        wanted = f"{subject.inputs.channels}x{subject.inputs.size}x{subject.inputs.size}"
        raise MismatchError(
            f"--dataset {dataset}: has latents of {given} in {len(found.class_counts_K)} classes, the model has"
            f" {wanted} in {subject.inputs.classes}; give the dataset of the model"
        )
    return found


def _fits(bounds: Bounds, subject: Subject) -> bool:
    inputs = subject.inputs
    shape = (inputs.channels, inputs.size, inputs.size)
    return bounds.probe_NCHW.shape[1:] == shape and len(bounds.class_counts_K) == inputs.classes
