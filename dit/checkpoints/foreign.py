"""Reads weights from checkpoints of other programs: state dicts, training checkpoints, safetensors.

Only tensors and plain containers are read; no code in a pickle runs.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dit.errors import MismatchError, MissingError

_CONTAINERS = ("ema", "state_dict", "model")
"""Keys under which training checkpoints keep a state dict, the preferred one first."""
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that DistributedDataParallel, torch.compile, FSDP and activation checkpointing add to a parameter's name."""
_FIRST = "x_embedder.proj.weight"
"""A name that every DiT has."""
# Values of a training's command line, which run no code.
_PLAIN: list[Any] = [argparse.Namespace, pathlib.PosixPath, (pathlib.PosixPath, "pathlib._local.PosixPath")]

_LAYOUTS = (
    (r"^transformer_blocks\.0\.attn1\.", "diffusers' layout of a transformer, such as DiTTransformer2DModel"),
    (r"^(transformer_blocks|single_transformer_blocks)\.", "diffusers' layout of another transformer (SD3, Flux)"),
    (r"^(model\.diffusion_model\.|first_stage_model\.)", "a latent diffusion model's layout (Stable Diffusion)"),
    (r"^(down_blocks|input_blocks)\.", "a U-Net's layout"),
    (r"^(encoder|decoder)\.(down|up|mid|conv_in)", "an autoencoder's layout"),
    (r"scale_shift_table$", "PixArt's layout"),
    (r"^(exp_avg|exp_avg_sq|step)\.", "an optimizer's state"),
)
"""Pattern of a tensor's name, and the layout that has such names; the first match counts."""


class Foreign(NamedTuple):
    """Weights under the names of the published checkpoints, and what was done to get them, as phrases."""

    weights: Mapping[str, Tensor]
    notes: tuple[str, ...]


def read_foreign(source: Path) -> Foreign:
    """Return the weights of a checkpoint: the EMA if it has one. Prefixes of wrappers are removed from the names.

    Raises MissingError when `source` does not exist.
    Raises MismatchError when it is not a checkpoint, has another layout, or holds a value that is not finite.
    """
    if not source.is_file():
        raise MissingError(f"{source}: no such file; give the path of a checkpoint such as DiT-XL-2-256x256.pt")
    tree = _load_safetensors(source) if _is_safetensors(source) else _load_pickle(source)
    tree, taken = _state_dict(source, tree)
    weights, renamed = _unwrapped(source, tree)
    _require_layout(source, weights)
    _require_finite(source, weights)
    return Foreign(weights, (*taken, *renamed))


def _is_safetensors(source: Path) -> bool:
    """Whether the file starts as a safetensors file: the header's length in eight bytes, then its JSON object."""
    with open(source, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= source.stat().st_size


def _load_safetensors(source: Path) -> Mapping[str, Tensor]:
    try:
        tensors: Mapping[str, Tensor] = load_file(source)
    except SafetensorError as error:
        raise MismatchError(f"{source}: is a damaged safetensors file: {error}; fetch it again") from None
    return tensors


def _load_pickle(source: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f"a {refused[1]}" if refused else "something other than tensors"
        raise MismatchError(f"{source}: holds {what}, which is not read; save only its state dict") from None
    except Exception as error:  # on a damaged file the unpickler can raise any exception
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise MismatchError(f"{source}: torch cannot read it as a checkpoint: {reason}; fetch it again") from None


def _state_dict(source: Path, tree: Any) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    taken: tuple[str, ...] = ()
    if isinstance(tree, dict) and (key := next((key for key in _CONTAINERS if key in tree), None)):
        tree = tree[key]
        taken = () if key == "ema" else (f"it has no `ema`, so the weights under `{key}` are taken",)
    if not isinstance(tree, dict) or not tree or not all(isinstance(value, Tensor) for value in tree.values()):
        keys = ", ".join(f"`{key}`" for key in _CONTAINERS)
        raise MismatchError(f"{source}: holds neither a state dict nor one under {keys}; give a DiT checkpoint")
    return tree, taken


def _unwrapped(source: Path, given: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Return the weights without the parts that wrappers add to names, and without a prefix that all names share."""
    names = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in given}
    prefixes = {name.removesuffix(_FIRST) for name in names.values() if name.endswith(f".{_FIRST}")}
    if len(prefixes) == 1 and all(name.startswith(prefix := min(prefixes)) for name in names.values()):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    elif prefixes:
        raise MismatchError(
            f"{source}: holds several modules, with weights of a DiT below {', '.join(sorted(prefixes))};"
            " save the state dict of one of them"
        )
    if len(set(names.values())) < len(names):
        raise MismatchError(f"{source}: holds the same tensors with and without a wrapper's prefix; save one of them")
    removed = sorted({name.removesuffix(short) for name, short in names.items() if name.endswith(short)} - {""})
    changed = any(name != short for name, short in names.items())
    notes = (f"removed from the names: {', '.join(removed) or 'parts that wrappers add'}",) if changed else ()
    return {short: given[name] for name, short in names.items()}, notes


def _require_layout(source: Path, weights: Mapping[str, Tensor]) -> None:
    for pattern, layout in _LAYOUTS if _FIRST not in weights else ():
        if any(re.search(pattern, name) for name in weights):
            raise MismatchError(f"{source}: has {layout}; give a checkpoint with the names of DiT-XL-2-256x256.pt")


def _require_finite(source: Path, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise MismatchError(
                f"{source}: {name} has {bad} of {tensor.numel()} values that are not finite;"
                " the training diverged or the file is damaged: give an earlier checkpoint"
            )
