"""Reads checkpoints of other programs: state dicts, training checkpoints, safetensors.

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

from dit.checkpoints.foreign_optimizer import read_optimizer
from dit.errors import MismatchError, MissingError

Weights = Mapping[str, Tensor]
_RAW = ("model", "state_dict")
"""Keys under which training checkpoints keep the trained weights, the preferred one first."""
_STEP_KEYS = ("step", "steps", "train_steps", "global_step", "iteration")
_DECAY_KEYS = ("ema_decay", "decay")
_RATE_KEYS = ("lr", "learning_rate")
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
    """What a checkpoint of another program holds, under the names of the published checkpoints."""

    raw: Weights | None
    """The trained weights; None if the file has one set of weights only, which is taken for the EMA."""
    ema: Weights | None
    optimizer: Weights
    """AdamW's state as `exp_avg.<parameter>`, `exp_avg_sq.<parameter>` and `step.<parameter>`; empty if there is none.
    """
    step: int | None
    """The step that the file, or its name, claims."""
    decay: float | None
    """The EMA's decay, if the file has it."""
    learning_rate: float | None
    notes: tuple[str, ...]
    """What was done to read it, as phrases."""

    @property
    def weights(self) -> Weights:
        """The EMA, or else the trained weights."""
        chosen = self.raw if self.ema is None else self.ema
        assert chosen is not None
        return chosen


def read_foreign(source: Path) -> Foreign:
    """Return what a checkpoint holds. Prefixes of wrappers are removed from the names; values may be not finite.

    Raises MissingError when `source` does not exist.
    Raises MismatchError when it is not a checkpoint, or has another layout.
    """
    if not source.is_file():
        raise MissingError(f"{source}: no such file; give the path of a checkpoint such as DiT-XL-2-256x256.pt")
    tree = _load_safetensors(source) if _is_safetensors(source) else _load_pickle(source)
    found = _state_dicts(source, tree)
    parts: dict[str, Weights] = {}
    notes: list[str] = []
    for name, given in found.items():
        parts[name], renamed = _unwrapped(source, given)
        _require_layout(source, parts[name])
        notes += [note for note in renamed if note not in notes]
    tree = tree if isinstance(tree, dict) else {}
    optimizer, problem = read_optimizer(tree.get("opt", tree.get("optimizer")), next(iter(parts.values())))
    if problem:
        notes.append(problem)
    return Foreign(
        raw=parts.get("raw"),
        ema=parts.get("ema"),
        optimizer=optimizer,
        step=_claimed_step(source, tree),
        decay=_number(_arguments(tree), _DECAY_KEYS),
        learning_rate=_number(_arguments(tree), _RATE_KEYS),
        notes=tuple(notes),
    )


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


def _state_dicts(source: Path, tree: Any) -> dict[str, Weights]:
    """Return the sets of weights by `raw` and `ema`; a state dict alone is `ema`, as published ones are."""
    if not isinstance(tree, dict):
        tree = {}
    raw = next((key for key in _RAW if key in tree), None)
    named = {"raw": tree.get(raw), "ema": tree.get("ema")} if raw or "ema" in tree else {"ema": tree}
    found = {name: given for name, given in named.items() if given is not None}
    for given in found.values():
        if not isinstance(given, dict) or not given or not all(isinstance(value, Tensor) for value in given.values()):
            keys = ", ".join(f"`{key}`" for key in ("ema", *_RAW))
            raise MismatchError(f"{source}: holds neither a state dict nor one under {keys}; give a DiT checkpoint")
    return found


def _arguments(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The training's command line, which train.py keeps under `args`."""
    given = tree.get("args")
    return vars(given) if isinstance(given, argparse.Namespace) else given if isinstance(given, dict) else {}


def _number(values: Mapping[str, Any], keys: tuple[str, ...]) -> float | None:
    numbers = (values[key] for key in keys if isinstance(values.get(key), int | float))
    return next((float(number) for number in numbers if not isinstance(number, bool)), None)


def _claimed_step(source: Path, tree: Mapping[str, Any]) -> int | None:
    """The step in the file, or in a name such as 0052000.pt, which train.py gives."""
    number = _number({key: value for key, value in tree.items() if isinstance(key, str)}, _STEP_KEYS)
    if number is not None:
        return int(number)
    return int(source.stem) if re.fullmatch(r"\d{5,9}", source.stem) else None


def _unwrapped(source: Path, given: Weights) -> tuple[Weights, tuple[str, ...]]:
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


def _require_layout(source: Path, weights: Weights) -> None:
    for pattern, layout in _LAYOUTS if _FIRST not in weights else ():
        if any(re.search(pattern, name) for name in weights):
            raise MismatchError(f"{source}: has {layout}; give a checkpoint with the names of DiT-XL-2-256x256.pt")
