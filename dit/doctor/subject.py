"""Opens the checkpoint that the doctor examines: a file of any program, a checkpoint's folder, or a study's step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dit.checkpoints.fit import fit_model
from dit.checkpoints.foreign import Foreign, read_foreign
from dit.checkpoints.read import load_file
from dit.errors import MismatchError, MissingError
from dit.results.stages import Work, checkpoint
from dit.results.state import require
from dit.results.study_copy import kept_studies
from dit.storage import Store, open_store, read_record
from dit.storage.open import fetch_file
from dit.study import layout
from dit.study.config import StudyConfig, TrainConfig
from dit.study.learning_rate import steps_until
from dit.study.records import CheckpointMeta
from dit.study.runs import Run
from dit.study.variants import InputSpec, ModelSpec

PUBLISHED_DECAY = 0.9999
PUBLISHED_RATE = 1e-4
"""Decay and learning rate of Peebles & Xie 2023, section 4, which are assumed unless the checkpoint has others."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A checkpoint that is examined."""

    name: str
    """What was given, for messages."""
    spec: ModelSpec
    inputs: InputSpec
    raw: Weights | None
    ema: Weights | None
    optimizer: Weights = field(default_factory=dict)
    """AdamW's state as in `optimizer.safetensors`; empty if there is none."""
    step: int | None = None
    """The step that the checkpoint claims."""
    decay: float | None = None
    """Of the EMA; None if it is not known."""
    learning_rate: float = PUBLISHED_RATE
    recipe: TrainConfig | None = None
    """Of the training; None if another program trained it, at a constant rate as far as is known."""
    config: StudyConfig | None = None
    """The study that the checkpoint is of, if it is known."""
    store: Store | None = None
    """The store of that study."""
    notes: tuple[str, ...] = ()

    def steps_until(self, full_steps: float) -> float:
        """The steps that are worth `full_steps` at the full learning rate."""
        return full_steps if self.recipe is None else steps_until(self.recipe, full_steps)

    @property
    def models(self) -> dict[str, Weights]:
        """The sets of weights by name, the EMA first."""
        both = {"EMA": self.ema, "raw": self.raw}
        return {name: weights for name, weights in both.items() if weights is not None}

    @property
    def initial_share(self) -> float:
        """Share of the initial weights in the EMA: decay^step; 0 if it is not known."""
        return 0.0 if self.step is None or self.decay is None else self.decay**self.step


@dataclass(frozen=True)
class Claims:
    """What the user says about a checkpoint, where it differs from what the checkpoint says."""

    variant: str | None = None
    step: int | None = None
    decay: float | None = None


def is_study_file(text: str) -> bool:
    """Whether an argument names a study file rather than a checkpoint or a folder."""
    return text.endswith((".yaml", ".yml"))


def open_subject(address: str, claims: Claims) -> Subject:
    """Open a file of any program, or the folder of a checkpoint, at a path or a store's address.

    Raises MissingError when there is none.
    Raises MismatchError when it is not a checkpoint of a DiT, DataError when a file of a folder is damaged.
    """
    if not _is_folder(address):
        return _of_foreign(address, read_foreign(fetch_file(address)), claims)
    where = address.rstrip("/") if "://" in address else str(Path(address).absolute())
    root, _, key = where.rpartition(f"/{layout.STUDIES}/")
    parts = key.split("/")
    # <study>/<variant>/checkpoints/<step> below a root's folder of studies, or a folder that was copied elsewhere.
    if root and len(parts) == 4:
        store, folder = open_store(root), f"{layout.STUDIES}/{key}"
    else:
        parent, _, folder = where.rpartition("/")
        store, parts = open_store(parent), []
    meta = read_record(store, f"{folder}/{layout.META}", CheckpointMeta)
    if meta is None:
        raise MissingError(
            f"{address}: has no {layout.META}, so it is no complete checkpoint; give a file or its folder"
        )
    config = _study_of(store, f"{layout.STUDIES}/{parts[0]}/submitted", meta) if parts else None
    return _of_folder(store, folder, meta, claims, config)


def open_step(config: StudyConfig, store: Store, run: Run, claims: Claims) -> Subject:
    """Open a step of a study's run; without a step, the last that is evaluated.

    Raises MissingError when the checkpoint is not complete.
    """
    step = claims.step if claims.step is not None else config.evaluation.at_steps[-1]
    work = Work(config, store)
    meta, claims = require(work, checkpoint(work, run, step)), Claims(run.spec.name, step, claims.decay)
    return _of_folder(store, layout.checkpoint(config, run, step), meta, claims, config)


def _is_folder(address: str) -> bool:
    if "://" in address and not address.startswith("file://"):
        return layout.step_number(address.rstrip("/").rpartition("/")[2]) is not None
    return Path(address.removeprefix("file://")).is_dir()


def _study_of(store: Store, folder: str, meta: CheckpointMeta) -> StudyConfig | None:
    """The kept study that a checkpoint was trained by; None if the store has none."""
    return next(
        (
            kept
            for kept in kept_studies(store, folder)
            if any(kept.training_hash(run) == meta.config_hash for run in kept.runs if run.spec.name == meta.variant)
        ),
        None,
    )


def _of_folder(store: Store, folder: str, meta: CheckpointMeta, claims: Claims, config: StudyConfig | None) -> Subject:
    files = {entry.name: load_file(store, folder, meta, entry.name) for entry in meta.files}
    raw, ema = files.get(layout.RAW_WEIGHTS), files.get(layout.EMA_WEIGHTS)
    name, weights = store.place(folder), ema if ema is not None else raw
    if weights is None:
        raise MismatchError(f"{name}: holds no weights; give another checkpoint")
    spec, inputs = fit_model(name, weights, claims.variant or meta.variant)
    # An imported checkpoint was trained by another program, whose recipe is that of the paper unless it is given.
    own = config is not None and meta.origin is None
    return Subject(
        name=name,
        spec=spec,
        inputs=inputs,
        raw=raw,
        ema=ema,
        optimizer=files.get(layout.OPTIMIZER, {}),
        step=claims.step if claims.step is not None else meta.step,
        decay=claims.decay or _decay(meta, config),
        learning_rate=config.train.learning_rate if config is not None and own else PUBLISHED_RATE,
        recipe=config.train if config is not None and own else None,
        config=config,
        store=store,
    )


def _decay(meta: CheckpointMeta, config: StudyConfig | None) -> float | None:
    if meta.origin is not None:
        return meta.origin.ema_decay or PUBLISHED_DECAY
    return config.train.ema_decay if config is not None else None


def _of_foreign(address: str, found: Foreign, claims: Claims) -> Subject:
    spec, inputs = fit_model(address, found.weights, claims.variant)
    return Subject(
        name=address,
        spec=spec,
        inputs=inputs,
        raw=found.raw,
        ema=found.ema,
        optimizer=found.optimizer,
        step=claims.step if claims.step is not None else found.step,
        decay=claims.decay or found.decay or PUBLISHED_DECAY,
        learning_rate=found.learning_rate or PUBLISHED_RATE,
        notes=found.notes,
    )
