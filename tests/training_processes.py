"""A small training of the digits as processes of its own, which tests start, kill and start again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from dit.results.stages import Work, checkpoint
from dit.results.state import require
from dit.storage import Store
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta
from dit.study.runs import Run
from dit.study.study_file import load
from dit.tracking import read_points

ROOT = Path(__file__).parents[1]
VARIANT = "mini-S/2"
STEPS = 60
OVERRIDES = (
    f"train.steps={STEPS}",
    "train.global_batch=12",
    "evaluation.at_steps=[4]",
    "fit.checkpoint_every=7",
    "fit.log_every=1",
    "fit.threads=1",
    "sampling.steps=2",
    "sampling.num_samples=4",
    "tracking.kind=none",
)
SEED = int(os.environ.get("DIT_TEST_SEED") or random.SystemRandom().randrange(1 << 30))

DEADLINE = 500
"""Seconds after which a process hangs; a machine that others share can be many times slower."""

SIGNALS = """
import os
from dit.training import trainer
step_before = trainer.Trainer.step
def signalling(self, batch):
    step_before(self, batch)
    if os.environ.get("SIGNAL_AT") == str(self.steps_done):
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
trainer.Trainer.step = signalling
"""

Losses = dict[tuple[str, int], float]


def study(name: str) -> StudyConfig:
    return load(ROOT / "configs" / "digits.yaml", [*OVERRIDES, f"study={name}"])


def checkpoint_meta(config: StudyConfig, store: Store, run: Run, step: int) -> CheckpointMeta:
    work = Work(config, store)
    return require(work, checkpoint(work, run, step))


def start(
    store: Store, name: str, *overrides: str, launcher: Iterable[str] = (), **environment: str
) -> subprocess.Popen[str]:
    arguments = [argument for override in (*OVERRIDES, f"study={name}", *overrides) for argument in ("--set", override)]
    command = [sys.executable, *launcher, "-m", "dit", "train", "configs/digits.yaml", "--variant", VARIANT]
    return subprocess.Popen(
        [*command, "--root", store.url, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_ranks(
    store: Store,
    name: str,
    port: int,
    *overrides: str,
    odd: tuple[str, ...] = (),
    odd_store: Store | None = None,
    environment: Mapping[str, str] | None = None,
    **odd_environment: str,
) -> list[subprocess.Popen[str]]:
    """Two processes as pods without torchrun: RANK and WORLD_SIZE, no LOCAL_RANK; rank 1 is started differently."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", **(environment or {})}
    return [
        start(store, name, *overrides, RANK="0", **address),
        start(odd_store or store, name, *overrides, *odd, RANK="1", **{**address, **odd_environment}),
    ]


def patched(folder: Path, code: str) -> str:
    """A PYTHONPATH with which a process runs this code before its own, as if the product had been changed."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return os.pathsep.join([str(folder), str(ROOT)])


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it wrote to standard error."""
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, err
    return err


def losses(store: Store, config: StudyConfig, keys: Iterable[str]) -> Losses:
    """What is in the journal under these keys, by key and step."""
    return {(p.key, p.step): p.value for p in read_points(config, store, config.run(VARIANT)) if p.key in keys}


def random_step() -> int:
    """A step between 10 and half-way."""
    return random.Random(SEED).randint(10, STEPS // 2)


def signalled(folder: Path, number: int, step: int, code: str = "") -> dict[str, str]:
    """Environment of a process that sends itself a signal after a step, however slow the machine; see `patched`.

    Without SIGNAL_AT it sends none.
    """
    return {"PYTHONPATH": patched(folder, SIGNALS + code), "SIGNAL": str(int(number)), "SIGNAL_AT": str(step)}
