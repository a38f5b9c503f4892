"""`python -m bench.doctor_cases [--only TEXT] [--save]`: broken checkpoints, and what the doctor says of each.

A small model is trained on the digits with a fault in the product's code, or its checkpoint is damaged afterwards. The
doctor sees each as a checkpoint of the store, as the official `{model, ema, opt, args}`, and as a published state dict.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from dit.checkpoints.read import load_file
from dit.cli.commands import run
from dit.console import say
from dit.data.loader import BatchMaker, StepBatch
from dit.diffusion.schedule import Schedule
from dit.doctor.bounds import open_bounds
from dit.doctor.diagnosis import Diagnosis
from dit.doctor.examine import examine
from dit.doctor.interpretations import VAE_SCALE, signal_and_noise
from dit.doctor.subject import Claims, Subject, open_step, open_subject
from dit.model import transformer
from dit.model.transformer import DiT
from dit.results.stages import Work, checkpoint
from dit.results.state import require
from dit.storage import open_store
from dit.study import layout
from dit.study.checks import CheckName
from dit.study.study_file import load
from dit.training import trainer as training
from dit.training.ema import Ema

STUDY, VARIANT, STEPS = Path(__file__).parents[1] / "configs" / "digits.yaml", "mini-S/2", 500
PAGE = Path(__file__).parent / "results" / "doctor-cases.md"
FORMATS = ("own", "official", "published")

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


def settings(name: str, steps: int = STEPS) -> list[str]:
    """Overrides of the study: a short training without health checks, which would stop it."""
    off = [f"health.{check}=off" for check in CheckName.__args__ if check != "finite"]
    recipe = [f"train.steps={steps}", f"evaluation.at_steps=[{steps}]", f"train.ema_decay={0.99 ** (500 / steps)!r}"]
    return [f"study={name}", "tracking.kind=none", "fit.threads=1", *recipe, *off]


def trained(root: Path, name: str, patch: Patch | None = None, steps: int = STEPS) -> tuple[Subject, Parts]:
    """Train the variant under a patch; the opened checkpoint and its tensors by file."""
    overrides = settings(name, steps)
    arguments = [word for override in overrides for word in ("--set", override)]
    with patch() if patch is not None else _nothing():
        if run(["train", str(STUDY), "--variant", VARIANT, "--root", str(root), *arguments]):
            raise SystemExit(f"{name}: the training failed")
    config, store = load(STUDY, overrides), open_store(root)
    subject = open_step(config, store, Claims(VARIANT, steps))
    folder = layout.checkpoint(config, subject.spec, steps)
    meta = require(work := Work(config, store), checkpoint(work, subject.spec, steps))
    return subject, {entry.name: load_file(store, folder, meta, entry.name) for entry in meta.files}


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def official(path: Path, parts: Parts, subject: Subject) -> Path:
    """Write parts as the official training writes them, under the name that it gives; returns the file."""
    names = [name for name in parts[_RAW] if name != "pos_embed"]
    keys = ("step", "exp_avg", "exp_avg_sq")
    state = {
        number: {key: parts[_OPT][f"{key}.{name}"] for key in keys}
        for number, name in enumerate(parts[_RAW])
        if f"exp_avg.{name}" in parts[_OPT]
    }
    assert len(state) <= len(names)
    opt = {"state": state, "param_groups": [{"params": list(range(len(parts[_RAW])))}]}
    arguments = argparse.Namespace(model=VARIANT, ema_decay=subject.decay, lr=subject.learning_rate)
    file = path / f"{subject.step:07d}.pt"
    torch.save({"model": parts[_RAW], "ema": parts[_EMA], "opt": opt, "args": arguments}, file)
    return file


def published(path: Path, parts: Parts) -> Path:
    """Write the EMA alone, as published weights are; returns the file."""
    torch.save(dict(parts[_EMA]), path / "published.pt")
    return path / "published.pt"


def opened(kind: str, folder: Path, subject: Subject, parts: Parts) -> Subject:
    """The same checkpoint in one of `FORMATS`."""
    if kind == "own":
        return replace(subject, raw=parts[_RAW], ema=parts[_EMA], optimizer=parts[_OPT])
    file = official(folder, parts, subject) if kind == "official" else published(folder, parts)
    return open_subject(str(file), Claims(None if kind == "official" else VARIANT))


def expected(case: Case, kind: str) -> str:
    """Pattern of the doctor's line."""
    named = case.published if kind == "published" and case.published is not None else case.cause
    return named or "healthy"


def diagnoses(case: Case, healthy: tuple[Subject, Parts], root: Path, scratch: Path) -> Iterator[tuple[str, Diagnosis]]:
    """What the doctor says of a case in each format."""
    name = re.sub(r"[^a-z0-9]+", "-", case.name.lower()).strip("-")
    subject, clean = trained(root, name, case.patch) if case.patch is not None else healthy
    parts = {file: dict(tensors) for file, tensors in clean.items()}
    if case.damage is not None:
        case.damage(parts)
    for kind in FORMATS:
        one = opened(kind, scratch, subject, parts)
        yield kind, examine(one, open_bounds(str(STUDY), one, str(root)))


def main() -> None:
    """Make every case, print the table, and fail if a cause is not named."""
    parser = argparse.ArgumentParser(prog="python -m bench.doctor_cases", description=__doc__)
    parser.add_argument("--only", default="", help="only cases whose name contains this text")
    parser.add_argument("--save", action="store_true", help=f"write {PAGE.name}")
    chosen = parser.parse_args()
    lines = ["| fault | checkpoint | named | what the doctor said |", "|---|---|---|---|"]
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="doctor-cases-") as scratch:
        root = Path(scratch) / "root"
        if run(["prepare", str(STUDY), "--root", str(root)]):
            raise SystemExit("the digits cannot be prepared")
        healthy = trained(root, "healthy")
        for case in CASES:
            if chosen.only not in case.name:
                continue
            for kind, diagnosis in diagnoses(case, healthy, root, Path(scratch)):
                line = diagnosis.headline.removeprefix(f"{diagnosis.subject}: ")
                named = re.search(expected(case, kind), line) is not None
                wrong += not named
                shown = "not separable" if not case.cause else "yes" if named else "NO"
                lines.append(f"| {case.name} | {kind} | {shown} | {line.replace('|', '/')} |")
                say(lines[-1])
    if chosen.save:
        PAGE.write_text("# What the doctor says of broken checkpoints\n\n" + "\n".join(lines) + "\n")
    sys.exit(f"{wrong} causes are not named" if wrong else 0)


if __name__ == "__main__":
    main()
