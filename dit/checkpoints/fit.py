"""Which model a set of weights belongs to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dit.errors import MismatchError
from dit.model.transformer import DiT, mismatch
from dit.study.variants import VARIANTS, InputSpec, ModelSpec, resolve

_PUBLISHED = InputSpec(channels=4, size=32, classes=1000)


def fit_model(source: str, weights: Mapping[str, Tensor], variant: str | None = None) -> tuple[ModelSpec, InputSpec]:
    """Return the variant and its inputs. Without `variant`, depth, hidden size and patch of the tensors decide.

    `source` names the checkpoint in errors.
    Raises MismatchError when the weights are not those of `variant`, or of any.
    """
    found = _variant_of(weights)
    if variant is None and found is None:
        raise MismatchError(f"{source}: has the depth and sizes of no known variant; give a checkpoint of a DiT")
    spec = resolve(variant) if variant is not None else found
    assert spec is not None
    inputs = _inputs(spec, weights)
    with torch.device("meta"):
        model = DiT(spec, inputs)
    if problem := mismatch(model.state_dict(), weights):
        advice = f"; give --variant {found.name}" if found not in (None, spec) else "; save its whole state dict"
        raise MismatchError(f"{source}: is not a checkpoint of {spec.name}: {problem}{advice}")
    return spec, inputs


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
