"""Converts a published checkpoint (a pickle of tensors) to safetensors with the same names and values."""

from __future__ import annotations

import argparse
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dit.errors import MismatchError, MissingError
from dit.model.transformer import DiT, mismatch
from dit.storage import open_store
from dit.study.records import FileEntry
from dit.study.variants import InputSpec, ModelSpec, resolve

_PUBLISHED = InputSpec(channels=4, size=32, classes=1000)


def convert_official(source: str | Path, target: str | Path, variant: str = "DiT-XL/2") -> FileEntry:
    """Write the checkpoint's weights to `target` in float32, atomically; return the file's size and hash.

    `source` holds a state dict, or a training checkpoint with a state dict under `ema`. Only tensors and plain
    containers are read; no code in the pickle runs. Channels, latent size and number of classes follow from the
    tensors.

    Raises MissingError when `source` does not exist.
    Raises MismatchError when it is not a checkpoint, or not one of `variant`.
    """
    spec = resolve(variant)
    weights = _weights(Path(source))
    with torch.device("meta"):
        model = DiT(spec, _inputs(spec, weights))
    if problem := mismatch(model.state_dict(), weights):
        raise MismatchError(f"{source}: is not a checkpoint of {spec.name}: {problem}; name its variant with --variant")
    data = save({name: weights[name].float().contiguous() for name in model.state_dict()}, {"variant": spec.name})
    target = Path(target).absolute()
    return open_store(target.parent).write(target.name, data)


def _weights(source: Path) -> Mapping[str, Tensor]:
    if not source.is_file():
        raise MissingError(f"{source}: no such file; give the path of a checkpoint such as DiT-XL-2-256x256.pt")
    tree = _load(source)
    if isinstance(tree, dict) and "ema" in tree:
        tree = tree["ema"]
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise MismatchError(f"{source}: holds neither a state dict nor one under `ema`; give a DiT checkpoint")
    return tree


def _load(source: Path) -> Any:
    try:
        # Published training checkpoints contain their command line as a Namespace, which runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f"a {refused[1]}" if refused else "something other than tensors"
        raise MismatchError(f"{source}: holds {what}, which is not read; save only its state dict") from None
    except Exception as error:  # on a damaged file the unpickler can raise any exception
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise MismatchError(f"{source}: torch cannot read it as a checkpoint: {reason}; fetch it again") from None


def _inputs(spec: ModelSpec, weights: Mapping[str, Tensor]) -> InputSpec:
    """Return the inputs that the tensors' shapes imply; the published ones if a tensor is missing."""
    try:
        patches, positions = weights["x_embedder.proj.weight"], weights["pos_embed"]
        labels = weights["y_embedder.embedding_table.weight"]
        return InputSpec(patches.shape[1], math.isqrt(positions.shape[1]) * spec.patch, labels.shape[0] - 1)
    except (KeyError, IndexError):
        return _PUBLISHED
