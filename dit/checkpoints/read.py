"""Finding and loading checkpoints. Torch-free until weights are loaded.

A checkpoint is three safetensors files and a meta.json, which is written last: without it there is no checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dit.errors import DataError, MissingError
from dit.storage import Store, sha256_file
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta
from dit.study.variants import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

FILES = (layout.RAW_WEIGHTS, layout.EMA_WEIGHTS, layout.OPTIMIZER)


def list_checkpoints(store: Store, config: StudyConfig, spec: ModelSpec) -> list[int]:
    """Steps of a variant's complete checkpoints, ascending."""
    return sorted(_steps(store, config, spec, complete=True))


def incomplete_checkpoints(store: Store, config: StudyConfig, spec: ModelSpec) -> list[int]:
    """Steps of folders that an interrupted upload, or an interrupted removal, left behind."""
    return sorted(_steps(store, config, spec, complete=False) - _steps(store, config, spec, complete=True))


def load_weights(
    store: Store, folder: str, meta: CheckpointMeta, weights: Literal["ema", "raw"]
) -> tuple[dict[str, Tensor], str]:
    """A checkpoint's averaged or raw weights, on the CPU, and the SHA-256 of their file.

    Raises DataError when the file is damaged.
    """
    name = layout.EMA_WEIGHTS if weights == "ema" else layout.RAW_WEIGHTS
    tensors = load_file(store, folder, meta, name)
    return tensors, next(entry.sha256 for entry in meta.files if entry.name == name)


def load_file(store: Store, folder: str, meta: CheckpointMeta, name: str) -> dict[str, Tensor]:
    """One file of a checkpoint, its SHA-256 checked against meta.json; DataError when it is damaged."""
    from safetensors.torch import load_file as load_safetensors

    where = f"{store.url}/{folder}"
    advice = f"remove {where} to go on from the checkpoint before it"
    entry = next((entry for entry in meta.files if entry.name == name), None)
    if entry is None:
        raise DataError(f"{where}/{name}: not listed in {layout.META}; {advice}")
    try:
        path = store.local(f"{folder}/{name}", entry.sha256)
    except (MissingError, DataError) as error:
        raise DataError(f"{where}/{name}: damaged or missing ({error}); {advice}") from error
    # A file store hands out the file as it is, so the bytes that are about to be loaded are hashed here.
    actual = sha256_file(path)
    if actual != entry.sha256:
        raise DataError(
            f"{where}/{name}: SHA-256 is {actual[:12]}..., {layout.META} says {entry.sha256[:12]}...: damaged; {advice}"
        )
    tensors: dict[str, Tensor] = load_safetensors(path)
    return tensors


def _steps(store: Store, config: StudyConfig, spec: ModelSpec, *, complete: bool) -> set[int]:
    """Steps of the folders that hold a meta.json, or, with complete unset, of those that hold anything."""
    prefix = layout.checkpoints(config, spec)
    found = set()
    for key in store.list(prefix):
        folder, _, name = key.removeprefix(f"{prefix}/").partition("/")
        number = layout.step_number(folder)
        if number is not None and (name == layout.META or not complete):
            found.add(number)
    return found
