"""Converts a checkpoint of another program to safetensors with the published names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from dit.checkpoints.foreign import read_foreign
from dit.console import say
from dit.errors import MismatchError
from dit.model.transformer import DiT, mismatch
from dit.storage import open_store
from dit.study.records import FileEntry
from dit.study.variants import VARIANTS, InputSpec, ModelSpec, resolve

_PUBLISHED = InputSpec(channels=4, size=32, classes=1000)


def convert_official(source: str | Path, target: str | Path, variant: str = "DiT-XL/2") -> FileEntry:
    """Write the checkpoint's weights to `target` in float32, atomically; return the file's size and hash.

    `source` holds a state dict, or a training checkpoint with one; see `read_foreign`. Channels, latent size and number
    of classes follow from the tensors. One line is printed about a prefix that was removed, or an EMA that is missing.

    Raises the errors of `read_foreign`.
    Raises MismatchError when the checkpoint is not one of `variant`.
    """
    spec = resolve(variant)
    weights, notes = read_foreign(Path(source))
    with torch.device("meta"):
        model = DiT(spec, _inputs(spec, weights))
    if problem := mismatch(model.state_dict(), weights):
        fitting = _variant_of(weights)
        advice = f"; give --variant {fitting.name}" if fitting not in (None, spec) else "; save its whole state dict"
        raise MismatchError(f"{source}: is not a checkpoint of {spec.name}: {problem}{advice}")
    data = save({name: weights[name].float().contiguous() for name in model.state_dict()}, {"variant": spec.name})
    target = Path(target).absolute()
    entry = open_store(target.parent).write(target.name, data)
    for note in notes:
        say(f"{source}: {note}")
    return entry


def _variant_of(weights: Mapping[str, Tensor]) -> ModelSpec | None:
    """The variant with the depth, hidden size and patch of these weights; None if there is none."""
    patches = weights.get("x_embedder.proj.weight", torch.zeros(()))
    depth = len({match[1] for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))})
    shape = (depth, patches.shape[0], patches.shape[-1]) if patches.dim() == 4 else None
    return next((spec for spec in VARIANTS.values() if (spec.depth, spec.hidden, spec.patch) == shape), None)


def _inputs(spec: ModelSpec, weights: Mapping[str, Tensor]) -> InputSpec:
    """Return the inputs that the tensors' shapes imply; the published ones if a tensor is missing."""
    try:
        patches, positions = weights["x_embedder.proj.weight"], weights["pos_embed"]
        labels = weights["y_embedder.embedding_table.weight"]
        return InputSpec(patches.shape[1], math.isqrt(positions.shape[1]) * spec.patch, labels.shape[0] - 1)
    except (KeyError, IndexError):
        return _PUBLISHED
