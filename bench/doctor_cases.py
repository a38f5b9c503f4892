"""`python -m bench.doctor_cases [--only PATTERN] [--save]`: broken checkpoints, and what the doctor says of each.

A small model is trained on the digits with a fault in the product's code, or its checkpoint is damaged afterwards. The
doctor sees each as a checkpoint of the store, as the official `{model, ema, opt, args}`, and as a published state dict.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch

from bench.doctor_faults import CASES, STEPS, STUDY, VARIANT, Case, Parts, Patch
from dit.checkpoints.read import load_file
from dit.cli.commands import run
from dit.console import say
from dit.doctor.bounds import open_bounds
from dit.doctor.diagnosis import Diagnosis
from dit.doctor.examine import examine
from dit.doctor.subject import Claims, Subject, open_step, open_subject
from dit.results.stages import Work, checkpoint
from dit.results.state import require
from dit.storage import open_store
from dit.study import layout
from dit.study.checks import CheckName
from dit.study.study_file import load

FORMATS = ("own", "official", "published")
PAGE = Path(__file__).parent / "results" / "doctor-cases.md"
_RAW, _EMA, _OPT = layout.RAW_WEIGHTS, layout.EMA_WEIGHTS, layout.OPTIMIZER


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
    trained_run = config.run(VARIANT)
    subject = open_step(config, store, trained_run, Claims(VARIANT, steps))
    folder = layout.checkpoint(config, trained_run, steps)
    meta = require(work := Work(config, store), checkpoint(work, trained_run, steps))
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


def diagnoses(
    case: Case, healthy: Callable[[], tuple[Subject, Parts]], root: Path, scratch: Path
) -> Iterator[tuple[str, Diagnosis]]:
    """What the doctor says of a case in each format."""
    name = re.sub(r"[^a-z0-9]+", "-", case.name.lower()).strip("-")
    subject, clean = trained(root, name, case.patch) if case.patch is not None else healthy()
    parts = {file: dict(tensors) for file, tensors in clean.items()}
    if case.damage is not None:
        case.damage(parts)
    for kind in FORMATS:
        one = opened(kind, scratch, subject, parts)
        yield kind, examine(one, open_bounds(str(STUDY), one, str(root)))


def main() -> None:
    """Make every case, print the table, and fail if a cause is not named."""
    parser = argparse.ArgumentParser(prog="python -m bench.doctor_cases", description=__doc__)
    parser.add_argument("--only", default="", help="only cases whose name has this regular expression")
    parser.add_argument("--save", action="store_true", help=f"write {PAGE.name}")
    chosen = parser.parse_args()
    lines = ["| fault | checkpoint | named | what the doctor said |", "|---|---|---|---|"]
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="doctor-cases-") as scratch:
        root = Path(scratch) / "root"
        if run(["prepare", str(STUDY), "--root", str(root)]):
            raise SystemExit("the digits cannot be prepared")
        healthy = cache(partial(trained, root, "healthy"))
        for case in CASES:
            if not re.search(chosen.only, case.name):
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
