"""Faults for the doctor: patches of the product for a training, and damages of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from dit.data.loader import BatchMaker, StepBatch
from dit.diffusion.schedule import Schedule
from dit.doctor.interpretations import VAE_SCALE, signal_and_noise
from dit.model import transformer
from dit.model.transformer import DiT
from dit.study import layout
from dit.study.study_file import load
from dit.training import trainer as training
from dit.training.ema import Ema

STUDY, VARIANT, STEPS = Path(__file__).parents[1] / "configs" / "digits.yaml", "mini-S/2", 500

Patch = Callable[[], Any]
"""A context manager under which the product has the fault."""
Parts = dict[str, dict[str, Tensor]]
"""File of a checkpoint -> tensors."""


@dataclass(frozen=True)
class Case:
    """A fault, and the cause that the doctor must name."""

    name: str
    cause: str
    """Pattern of the doctor's line for a training checkpoint; empty if the fault cannot be seen."""
    patch: Patch | None = None
    damage: Callable[[Parts], None] | None = None
    published: str | None = None
    """The same for a published state dict, where the line is another."""


def _method(owner: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    return lambda: mock.patch.object(owner, name, make(getattr(owner, name)))


def _ema(change: Callable[[Ema, Callable[[Ema], None], int], None]) -> Patch:
    """Another `Ema.update`, which is given the number of the call."""

    def make(update: Callable[[Ema], None]) -> Callable[[Ema], None]:
        calls = iter(range(10**9))
        return lambda self: change(self, update, next(calls))

    return _method(Ema, "update", make)


def _rounded(dtype: torch.dtype) -> Patch:
    def change(self: Ema, update: Callable[[Ema], None], _: int) -> None:
        update(self)
        for average in self.tensors.values():
            average.copy_(average.to(dtype))

    return _ema(change)


def _reset(self: Ema, update: Callable[[Ema], None], call: int) -> None:
    update(self)
    if call == STEPS * 4 // 5:
        for average, parameter in zip(self.tensors.values(), self._parameters, strict=True):
            average.copy_(parameter)


def _fed(change: Callable[[StepBatch], StepBatch]) -> Patch:
    return _method(BatchMaker, "batch", lambda batch: lambda self, step: change(batch(self, step)))


def _labelled(change: Callable[[Tensor], Tensor]) -> Patch:
    """Other labels; those that are dropped stay dropped."""
    return _fed(lambda batch: replace(batch, y_N=torch.where(batch.y_N == 10, batch.y_N, change(batch.y_N))))


def _target(target: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Patch:
    """The loss compares with `target(x0, noise, t)` instead of the noise."""

    def make(losses: Callable[..., Any]) -> Callable[..., Any]:
        return lambda schedule, output, x0, x_t, t, noise: losses(schedule, output, x0, x_t, t, target(x0, noise, t))

    return _method(training, "training_losses", make)


def _velocity(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    signal, level = (torch.from_numpy(each)[t].float()[:, None, None, None] for each in signal_and_noise("linear"))
    return signal * noise - level * x0


def _cosine() -> Schedule:
    bar = np.square(signal_and_noise("cosine")[0])
    return Schedule(1 - bar / np.append(1.0, bar[:-1]), np.arange(len(bar)))


def _unpatchify(x_NTO: Tensor, patch: int) -> Tensor:
    """Patches in the order channel, row, column."""
    n, tokens, values = x_NTO.shape
    side, channels = math.isqrt(tokens), values // patch**2
    grid = x_NTO.reshape(n, side, side, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(n, channels, side * patch, side * patch)


def _positions(change: Callable[[Tensor], Tensor]) -> Patch:
    def make(initialise: Callable[[DiT, int], None]) -> Callable[[DiT, int], None]:
        def changed(self: DiT, seed: int) -> None:
            initialise(self, seed)
            self.pos_embed.data = change(self.pos_embed.data)

        return changed

    return _method(DiT, "initialise", make)


def _frozen_head(build: Callable[..., Any]) -> Callable[..., Any]:
    def frozen(model: DiT, train: Any) -> Any:
        model.final_layer.linear.requires_grad_(False)
        return build(model, train)

    return frozen


def _in_files(*files: str, names: str = "", change: Callable[[Tensor], Tensor]) -> Callable[[Parts], None]:
    """Damage tensors whose names contain `names`."""

    def damage(parts: Parts) -> None:
        for file in files:
            for name, tensor in parts[file].items():
                if names in name:
                    parts[file][name] = change(tensor.clone())

    return damage


def _initial_ema(parts: Parts) -> None:
    config = load(STUDY, [])
    model = DiT(config.spec(VARIANT), config.dataset.inputs)
    model.initialise(config.train.seed)
    parts[layout.EMA_WEIGHTS] = {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _broken_value(tensor: Tensor) -> Tensor:
    tensor.view(-1)[0] = math.nan
    return tensor


_RAW, _EMA, _OPT = layout.RAW_WEIGHTS, layout.EMA_WEIGHTS, layout.OPTIMIZER
_HEAD = "final_layer.linear"

CASES: tuple[Case, ...] = (
    Case("healthy", "healthy"),
    Case("EMA never updated", "the EMA was never updated", damage=_initial_ema, published="head .* is still 0"),
    Case("EMA updated every 5th step", "EMA does not follow", _ema(lambda s, u, n: u(s) if n % 5 == 0 else None),
         published="healthy|noise|error|spatial"),
    Case("EMA in bf16", "kept in bf16", _rounded(torch.bfloat16), published="kept in low precision"),
    Case("EMA in fp16", "kept in fp16", _rounded(torch.float16), published="fp16"),
    Case("EMA with decay 0.999", "EMA does not follow",
         _method(training, "Ema", lambda ema: lambda model, decay: ema(model, 1 - (1 - decay) / 10)),
         published="healthy|noise|error|spatial"),
    Case("EMA is a copy", "it is a copy",
         damage=lambda parts: parts.update({_EMA: dict(parts[_RAW])}), published="healthy"),
    Case("EMA reset", "", _ema(_reset)),
    Case("head is zero", "head .*still 0",
         damage=_in_files(_RAW, _EMA, names=_HEAD, change=torch.zeros_like)),
    Case("head is not trained", "head .* is not trained", _method(training, "build_optimizer", _frozen_head),
         published="head .*still 0"),
    Case("positions lost in the file", "positions are lost",
         damage=_in_files(_RAW, _EMA, names="pos_embed", change=torch.zeros_like)),
    Case("positions lost in training", "positions are lost", _positions(torch.zeros_like)),
    Case("positions scrambled", "positions are scrambled", _positions(lambda table: table.flip(1))),
    Case("NaN", "values that are not finite",
         damage=_in_files(_RAW, _EMA, names="blocks.1.mlp.fc1.weight", change=_broken_value)),
    Case("optimizer forgotten", "its state was not restored",
         damage=_in_files(_OPT, names="step.", change=lambda tensor: tensor - 200), published="healthy"),
    Case("one class trained", "only class 3 was trained", _labelled(lambda y: torch.full_like(y, 3)),
         published="healthy"),
    Case("labels always dropped", "labels are always dropped", _labelled(lambda y: torch.full_like(y, 10)),
         published="healthy"),
    Case("labels never dropped", "labels are never dropped", _fed(lambda b: replace(b, y_N=b.y_N % 10)),
         published="healthy"),
    Case("labels one too high", "labels one above", _labelled(lambda y: (y + 1) % 10)),
    Case("output patches (c, p, q)", "output patches in the order",
         _method(transformer, "unpatchify", lambda _: _unpatchify)),
    Case("t / 1000 in training", "timesteps of 0 to 1",
         _method(DiT, "forward", lambda forward: lambda self, x, t, y: forward(self, x, t / 1000, y))),
    Case("latents not scaled", "unscaled latents", _fed(lambda b: replace(b, x0_NCHW=b.x0_NCHW / VAE_SCALE))),
    Case("latents scaled twice", "scaled twice", _fed(lambda b: replace(b, x0_NCHW=b.x0_NCHW * VAE_SCALE))),
    Case("cosine schedule", "cosine noise schedule",
         lambda: mock.patch.object(training, "SCHEDULES", {"linear": _cosine})),
    Case("x0 as target", "predicts the image", _target(lambda x0, _noise, _t: x0)),
    Case("v as target", "predicts v", _target(_velocity)),
)  # fmt: skip
