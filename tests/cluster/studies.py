"""Studies on the cluster: their stages and launchers as `restricted` pods, and their results."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from kube import NAMESPACE, OURS, SESSION, Object, apply, delete, find, get, kubectl, until
from mlflow import MlflowClient
from mlflow.entities import Run

from dit.checkpoints.read import list_checkpoints
from dit.storage import Store, open_store, read_record
from dit.study import layout, study_file
from dit.study.config import StudyConfig
from dit.study.records import TrainRecord
from dit.tracking import read_points
from pipelines.jobs import names

STUDY_FILE = Path(__file__).parents[2] / "configs" / "digits.yaml"
MOUNT = "/study"
CONFIG_MAP = f"test-study-{SESSION}"
EARLY = "early"
EARLY_LABEL = f"dit-scaling/{EARLY}"
"""Label of pods, and prefix of studies with jobs, that outlive the test module that starts them."""
TOLERANCE = 1e-4
_LOGGED = ("fit.log_every=10",)
# The learning rate is constant, so the losses of a shorter training are the first ones of a longer one.
_REFERENCE_STEPS = {"mini-S/2": 600}
# One count for all sites: names of pods differ also between copies of a site.
_NUMBERS = itertools.count(1)
_SETTINGS = [
    {"configMapRef": {"name": "dit-services"}},
    {"secretRef": {"name": "dit-s3"}},
    {"secretRef": {"name": "dit-mlflow"}},
]


def study_config_map(namespace: str = NAMESPACE) -> Object:
    metadata = {"name": CONFIG_MAP, "namespace": namespace, "labels": OURS}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"study.yaml": STUDY_FILE.read_text()},
    }


def pod(name: str, image: str, command: Sequence[str], account: str, namespace: str = NAMESPACE) -> Object:
    """A pod of the study's image that runs one command to its end."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        # Network policies select launchers by this label.
        "metadata": {"name": name, "namespace": namespace, "labels": {**OURS, names.APP: account}},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": account,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "command": list(command),
                    "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
                    "envFrom": _SETTINGS,
                    "resources": {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"memory": "3Gi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "study", "mountPath": MOUNT},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }
            ],
            "volumes": [
                {"name": "study", "configMap": {"name": CONFIG_MAP}},
                {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
            ],
        },
    }


@dataclass
class Ended:
    """Exit code and log of a pod."""

    code: int
    log: str

    @property
    def last_line(self) -> str:
        """The error message; standard error and output are mixed in the log, so it may not be the last line."""
        return [line for line in self.log.splitlines() if line.startswith("dit: ")][-1]


@dataclass(frozen=True)
class Running:
    """A pod that a test started."""

    name: str
    namespace: str = NAMESPACE

    @property
    def log(self) -> str:
        return kubectl("logs", "-n", self.namespace, self.name)

    def says(self, text: str, seconds: float) -> str:
        """Wait for a log line with this text, and return it."""
        return self.wait_for_line(text, seconds)[0]

    def wait_for_line(self, text: str, seconds: float) -> tuple[str, float]:
        """Wait for a log line with this text; returns the line and the seconds since the pod was created."""

        def look() -> str:
            log = kubectl("logs", "--timestamps", "-n", self.namespace, self.name)
            return next((line for line in log.splitlines() if text in line), "")

        moment, _, line = until(f"pod {self.name} says {text!r}", look, seconds).partition(" ")
        made = kubectl("get", "pod", "-n", self.namespace, self.name, "-o=jsonpath={.metadata.creationTimestamp}")
        # Fractions of a second have nine digits here.
        came = datetime.fromisoformat(f"{moment[:19]}+00:00")
        return line, (came - datetime.fromisoformat(made)).total_seconds()

    def end(self, seconds: float) -> Ended:
        def look() -> Any:
            result = get("pod", self.name, self.namespace)
            statuses = (result or {}).get("status", {}).get("containerStatuses") or [{}]
            return statuses[0].get("state", {}).get("terminated")

        end = until(f"pod {self.name} ends", look, seconds)
        ended = Ended(int(end["exitCode"]), self.log)
        print(ended.log)  # pytest shows it where the test fails
        return ended

    def delete(self) -> None:
        """Delete the pod, as an eviction does."""
        delete("pod", self.name, self.namespace)


@dataclass
class Site:
    """The cluster under test: its store, image and tracking server."""

    image: str
    root: str
    mlflow: str
    """Address of the tracking server from this machine."""
    reference_root: Path
    """Results of the same studies on this machine, in one process."""
    _references: dict[tuple[str, ...], list[tuple[int, float]]] = field(default_factory=dict, init=False)

    @cached_property
    def store(self) -> Store:
        """The cluster's store, read from this machine."""
        return open_store(self.root)

    def start(self, command: Sequence[str], account: str, name: str = "stage", early: bool = False) -> Running:
        """Start a pod; can be called from any thread."""
        running = Running(f"test-{SESSION}-{name}-{next(_NUMBERS)}")
        manifest = pod(running.name, self.image, command, account)
        if early:
            manifest["metadata"]["labels"][EARLY_LABEL] = "true"
        apply(manifest)
        return running

    def reference(self, variant: str, *recipe: str) -> list[tuple[int, float]]:
        """(step, loss) of a training in one process on this machine; cached."""
        key = (variant, *recipe)
        if key not in self._references:
            overrides = [*_LOGGED, f"study=reference-{len(self._references)}", "tracking.kind=none", *recipe]
            sets = [word for override in overrides for word in ("--set", override)]
            for stage in (["prepare"], ["train", "--variant", variant]):
                command = [sys.executable, "-m", "dit", stage[0], str(STUDY_FILE), "--root", str(self.reference_root)]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                subprocess.run([*command, *sets, *stage[1:]], env=environment, check=True, capture_output=True)
            config = study_file.load(STUDY_FILE, overrides)
            self._references[key] = _losses(config, open_store(self.reference_root), variant)
        return self._references[key]

    def study(self, name: str, *overrides: str) -> Study:
        """The digits study under a unique name, with overrides."""
        return Study(self, (*_LOGGED, f"study={name}-{SESSION}", *overrides))


@dataclass(frozen=True)
class Study:
    """A study on the cluster."""

    site: Site
    overrides: tuple[str, ...]

    @cached_property
    def config(self) -> StudyConfig:
        """The configuration, from file and overrides."""
        return study_file.load(STUDY_FILE, list(self.overrides))

    @property
    def settings(self) -> list[str]:
        """Arguments of commands for this study."""
        sets = [word for override in self.overrides for word in ("--set", override)]
        return [f"{MOUNT}/study.yaml", "--root", self.site.root, *sets]

    def run(self, *arguments: str, seconds: float = 180) -> str:
        """Run a stage such as `prepare`, which is not a job, in a pod; returns the log."""
        command = ["dit", arguments[0], *self.settings, *arguments[1:]]
        ended = self.site.start(command, "dit-worker").end(seconds)
        assert ended.code == 0, ended.log
        return ended.log

    def launch(
        self, variant: str = "mini-S/2", stage: str = "train", *, early: bool = False, **changed: str
    ) -> Running:
        image, account = changed.get("image", self.site.image), changed.get("account", "dit-launcher")
        command = ["dit", "launch", *self.settings, "--stage", stage]
        return self.site.start([*command, "--variant", variant, "--image", image], account, "launcher", early)

    def job(self, variant: str = "mini-S/2", stage: Any = "train") -> str:
        """Name of a variant's job."""
        return names.job_name(self.config.study, self.config.run(variant), stage)

    def workers(self, variant: str = "mini-S/2") -> list[Object]:
        """Pods of a variant's training."""
        return find("pods", f"{names.JOB}={self.job(variant)}")

    def newest_checkpoint(self, variant: str = "mini-S/2") -> int:
        """Step of the newest checkpoint, 0 if there is none; retries an unavailable store."""
        (step,) = until("the store answers", lambda: [self._newest(variant)], 60)
        return step

    def past(self, step: int, variant: str = "mini-S/2", seconds: float = 180) -> None:
        """Wait until there is a checkpoint of this step or a later one."""
        what = f"{self.config.study} is past step {step}"
        until(what, lambda: self._newest(variant) >= step, seconds, pause=0.5)

    def _newest(self, variant: str) -> int:
        return max(list_checkpoints(self.site.store, self.config, self.config.run(variant)), default=0)

    def record(self, variant: str = "mini-S/2") -> TrainRecord:
        """The record of a complete training."""
        record = read_record(self.site.store, layout.train_record(self.config, self.config.run(variant)), TrainRecord)
        assert record is not None
        return record

    def losses(self, variant: str = "mini-S/2") -> list[tuple[int, float]]:
        """(step, loss) from the journal in the store."""
        return _losses(self.config, self.site.store, variant)

    def mlflow_run(self, variant: str = "mini-S/2") -> Run:
        """The variant's only run on the tracking server."""
        client = MlflowClient(self.site.mlflow)
        experiment = client.get_experiment_by_name(self.config.study)
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], f"params.variant = '{variant}'")
        return run

    def reference(self, variant: str = "mini-S/2") -> list[tuple[int, float]]:
        """(step, loss) of the same training in one process on this machine; it may have more steps."""
        recipe = (item for item in self.overrides if item.startswith("train.") and not item.startswith("train.steps="))
        steps = max(self.config.train.steps, _REFERENCE_STEPS.get(variant, 0))
        return self.site.reference(variant, f"train.steps={steps}", *recipe)

    def check_losses(self, variant: str = "mini-S/2") -> None:
        """Check that each step was logged once, with the losses of the same training in one process."""
        result, wanted = self.losses(variant), self.reference(variant)
        steps = [step for step, _ in result]
        assert steps == sorted(set(steps))
        assert steps[-1] == self.config.train.steps
        means = _means(result, self.config.fit.log_every)
        assert list(means) == [step for step, _ in wanted if step <= steps[-1]]
        for step, loss in wanted[: len(means)]:
            assert means[step] == pytest.approx(loss, rel=TOLERANCE), f"step {step}"


def _means(points: Sequence[tuple[int, float]], every: int) -> dict[int, float]:
    """Means over `every` steps: an interrupted training logs part of an interval, and the rest later."""
    means: dict[int, float] = {}
    before = 0
    for step, loss in points:
        end = math.ceil(step / every) * every
        means[end] = means.get(end, 0.0) + loss * (step - before) / every
        before = step
    return means


def _losses(config: StudyConfig, store: Store, variant: str) -> list[tuple[int, float]]:
    points = read_points(config, store, config.run(variant))
    return [(point.step, point.value) for point in points if point.key == "loss"]
