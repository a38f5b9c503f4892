"""Lists and loads checkpoints. Torch-free until weights are loaded.

A checkpoint is three safetensors files and a meta.json, which is written last. Without meta.json it is incomplete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dit.errors import DataError, MissingError
from dit.storage import Store, sha256_file
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta
from dit.study.runs import Run

if TYPE_CHECKING:
    from torch import Tensor

FILES = (layout.RAW_WEIGHTS, layout.EMA_WEIGHTS, layout.OPTIMIZER)


def list_checkpoints(store: Store, config: StudyConfig, run: Run) -> list[int]:
    """Return the steps of a variant's complete checkpoints, ascending."""
    return sorted(_steps(store, config, run, complete=True))


def incomplete_checkpoints(store: Store, config: StudyConfig, run: Run) -> list[int]:
    """Return the steps of incomplete checkpoints, which an interrupted upload or removal left, ascending."""
    return sorted(_steps(store, config, run, complete=False) - _steps(store, config, run, complete=True))


def load_weights(
    store: Store, folder: str, meta: CheckpointMeta, weights: Literal["ema", "raw"]
) -> tuple[dict[str, Tensor], str]:
    """Return a checkpoint's EMA or raw weights, on the CPU, and the SHA-256 of their file.

    Raises DataError when the file is missing or damaged.
    """
    name = layout.EMA_WEIGHTS if weights == "ema" else layout.RAW_WEIGHTS
    tensors = load_file(store, folder, meta, name)
    return tensors, next(entry.sha256 for entry in meta.files if entry.name == name)


def load_file(store: Store, folder: str, meta: CheckpointMeta, name: str) -> dict[str, Tensor]:
    """Return the tensors of one file, after its SHA-256 is compared with meta.json.

    Raises DataError when the file is missing or damaged, MissingError when the checkpoint was imported without it.
    """
    from safetensors.torch import load_file as load_safetensors

    where = store.place(folder)
    advice = f"remove {where} to resume from the checkpoint before it"
    entry = next((entry for entry in meta.files if entry.name == name), None)
    if entry is None and meta.origin is not None:
        held = ", ".join(entry.name for entry in meta.files)
        raise MissingError(f"{where}: imported without {name}, it has {held}; set sampling.weights to ema or raw")
    if entry is None:
        raise DataError(f"{where}/{name}: not listed in {layout.META}; {advice}")
    try:
        path = store.local(f"{folder}/{name}", entry.sha256)
    except (MissingError, DataError) as error:
        raise DataError(f"{where}/{name}: damaged or missing ({error}); {advice}") from error
    # A file store returns the path without a check, so the bytes are hashed here, just before they are loaded.
    actual = sha256_file(path)
    if actual != entry.sha256:
        raise DataError(
            f"{where}/{name}: SHA-256 is {actual[:12]}..., {layout.META} has {entry.sha256[:12]}...: damaged; {advice}"
        )
    tensors: dict[str, Tensor] = load_safetensors(path)
    return tensors


def _steps(store: Store, config: StudyConfig, run: Run, *, complete: bool) -> set[int]:
    """Steps of the folders that hold a meta.json or, with `complete=False`, any file."""
    prefix = layout.checkpoints(config, run)
    steps = set()
    for key in store.list(prefix):
        folder, _, name = key.removeprefix(f"{prefix}/").partition("/")
        number = layout.step_number(folder)
        if number is not None and (name == layout.META or not complete):
            steps.add(number)
    return steps
