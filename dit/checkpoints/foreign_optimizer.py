"""Reads AdamW's state from a training checkpoint of another program, as tensors by the parameters' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_STATE = ("exp_avg", "exp_avg_sq", "step")
_FIXED = "pos_embed"


def read_optimizer(tree: Any, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the state under `exp_avg.<parameter>` and so on, and why there is none although the file has one.

    torch numbers parameters in the order in which they were given to the optimizer: the model's, with or without the
    fixed table of positions. `weights` have that order.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("state"), dict) or not tree["state"]:
        return {}, ""
    numbers = [number for group in tree.get("param_groups", ()) for number in group.get("params", ())]
    state = tree["state"]
    for names in (list(weights), [name for name in weights if name != _FIXED]):
        if len(names) == len(numbers) and _fits(state, numbers, names, weights):
            return dict(_named(state, numbers, names)), ""
    return {}, "its optimizer's state does not belong to these parameters, so it is not read"


def _fits(
    state: Mapping[int, Any], numbers: Sequence[int], names: Sequence[str], weights: Mapping[str, Tensor]
) -> bool:
    pairs = ((state[number], weights[name]) for number, name in zip(numbers, names, strict=True) if number in state)
    return all(
        isinstance(entry, dict)
        and all(key in entry for key in _STATE)
        and entry["exp_avg_sq"].shape == entry["exp_avg"].shape == weight.shape
        for entry, weight in pairs
    )


def _named(state: Mapping[int, Any], numbers: Sequence[int], names: Sequence[str]) -> list[tuple[str, Tensor]]:
    return [
        (f"{key}.{name}", torch.as_tensor(state[number][key]))
        for number, name in zip(numbers, names, strict=True)
        if number in state
        for key in _STATE
    ]
