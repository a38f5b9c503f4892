"""Helpers that log to a study's runs, also from other processes, and read them with MLflow's client."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from PIL import Image

from dit.storage import Store
from dit.study.config import StudyConfig
from dit.study.runs import Run
from dit.tracking.lock_file import is_held
from dit.tracking.paths import study_folder
from dit.tracking.state import waiting
from dit.tracking.target import resolve_target

STUDY = Path(__file__).parents[1] / "configs" / "digits.yaml"
# One variant for each test that shares a study, and one that the shared study starts with.
VARIANTS = "variants=[mini-S/2, mini-B/2, mini-L/2, mini-XL/2, mini-S/4, mini-B/4, mini-L/4]"
SHOWN = "mini-S/2"
PATIENCE_SECONDS = 240.0
TRAINING = """
import sys, time
from dit.study import study_file
from dit.storage import open_store
from dit.tracking import open_tracker
study, root, variant, first, last, then = sys.argv[1:7]
config = study_file.load(study, sys.argv[7:])
with open_tracker(config, open_store(root), config.run(variant)) as tracker:
    for step in range(int(first), int(last) + 1, 10):
        tracker.metrics(step, {"loss": 1 / step, "images_per_second": time.time()})
    print("logged", flush=True)
    time.sleep(float(then))
"""


class Tracked:
    """A study's experiment as MLflow's client reads it."""

    def __init__(self, uri: str, experiment: str = "digits") -> None:
        self.client: Any = MlflowClient(tracking_uri=uri)
        known = self.client.get_experiment_by_name(experiment)
        self.runs = self.client.search_runs([known.experiment_id]) if known else []

    def run(self, name: str) -> Any:
        [run] = [run for run in self.runs if run.info.run_name == name]
        return run

    def history(self, name: str, key: str) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.run(name).info.run_id, key)
        return sorted((point.step, point.value) for point in history)

    def files(self, name: str, folder: str | None = None) -> list[str]:
        files = self.client.list_artifacts(self.run(name).info.run_id, folder)
        return [path for file in files for path in (self.files(name, file.path) if file.is_dir else [file.path])]

    @property
    def statuses(self) -> dict[str, str]:
        return {run.info.run_name: run.info.status for run in self.runs}


def train(
    store: Store, study_run: Run, first: int, last: int, *overrides: str, then: float = 0, wait: bool = True
) -> subprocess.Popen[str]:
    """A training in its own process, which has logged its points when this returns."""
    command = [sys.executable, "-c", TRAINING, str(STUDY), store.url, study_run.name]
    command += [str(first), str(last), str(then), VARIANTS, *overrides]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "logged\n"
    if wait:
        assert process.wait() == 0
    return process


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"timeout: {what}"
        time.sleep(0.1)


def arrived(config: StudyConfig, store: Store) -> bool:
    return waiting(study_folder(config, store), resolve_target(config, store)) == 0


def stand(store: Store, **statuses: str) -> bool:
    """Whether the named runs, which may include the study's, have these statuses."""
    return statuses.items() <= Tracked(database(store)).statuses.items()


def end_shippers(folder: Path) -> None:
    for lock in folder.rglob("shipper.lock"):
        if is_held(lock):
            os.kill(int(lock.read_text().split()[1]), signal.SIGKILL)


def database(store: Store) -> str:
    return f"sqlite:///{store.url.removeprefix('file://')}/mlflow.db"


def losses(*steps: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in steps]


def picture(grey: int) -> bytes:
    target = io.BytesIO()
    Image.new("L", (64, 32), grey).save(target, "PNG")
    return target.getvalue()
