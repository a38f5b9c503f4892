"""One step of the pipeline, in its own process: call a stage by name and hand its records to kfp. Knows no kfp."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dit.errors import DitError, MissingError, StoreError, one_line
from dit.storage import Store, cache_dir, open_store
from dit.study import layout, study_file
from dit.study.config import StudyConfig
from dit.study.records import DatasetManifest, MetricsRecord, Record, SampleSetManifest, TrainRecord
from dit.study.variants import resolve
from pipelines.cluster.retry import retry
from pipelines.jobs.names import KFP_POD, JobStage
from pipelines.step import artifacts, events, parent_watch

_TERMINATION_LOG = Path("/dev/termination-log")
_TERMINATION_BYTES = 4096
_PART_SECTIONS = ("dataset", "fit")


class Artifact(Protocol):
    """What kfp gives a component for an output."""

    path: str
    metadata: dict[str, Any]


class MetricsArtifact(Artifact, Protocol):
    """kfp's Metrics."""

    def log_metric(self, metric: str, value: float) -> None:
        """Show a number in the pipelines' UI."""


@dataclass(frozen=True)
class Run:
    """A study, and what was changed of it when the pipeline's run was submitted; None is as the study has it."""

    study: str
    """The study file's text."""
    root: str
    steps: int | None = None
    """Length of training."""
    cfg: float | None = None
    """Scale of classifier-free guidance."""
    samples: int | None = None
    """Images of a sample set."""
    seed: int | None = None
    """Of training."""
    overrides: list[str] = field(default_factory=list)
    """As the command line's --set; these win."""

    def all_overrides(self) -> list[str]:
        """What makes this run's study of the text; ConfigError where that is no study."""
        own = study_file.load_text(self.study)
        asked = {
            "train.steps": (self.steps, own.train.steps),
            "sampling.cfg_scale": (self.cfg, own.sampling.cfg_scale),
            "sampling.num_samples": (self.samples, own.sampling.num_samples),
            "train.seed": (self.seed, own.train.seed),
        }
        changed = [f"{key}={value}" for key, (value, default) in asked.items() if value not in (None, default)]
        return [*changed, *self.overrides]


@dataclass(frozen=True)
class StepResult:
    """What a stage returned, and where it wrote it."""

    config: StudyConfig
    store: Store
    records: list[Record]

    def dataset(self, artifact: Artifact) -> None:
        """The dataset's manifest."""
        self._save(artifact, layout.dataset(self.config))
        for record in self.records:
            if isinstance(record, DatasetManifest):
                artifact.metadata |= {"images": record.count, "shards": len(record.shards)}

    def part(self, artifact: Artifact, part: tuple[int, int]) -> None:
        """Which part of the dataset is in the store."""
        self._place(artifact, layout.dataset(self.config))
        Path(artifact.path).write_text(json.dumps(artifact.metadata | {"part": part[0], "parts": part[1]}) + "\n")

    def model(self, artifact: Artifact) -> None:
        """The record of a training that has ended."""
        for record in self.records:
            if isinstance(record, TrainRecord):
                spec = resolve(record.variant)
                self._save(artifact, layout.checkpoint(self.config, spec, record.steps))
                artifact.metadata |= {"variant": spec.name, "steps": record.steps, "loss": record.final_loss}

    def samples(self, sets: Artifact, grids: Artifact) -> None:
        """The last sample set's manifest, and previews of all."""
        shown = []
        for record in self.records:
            if isinstance(record, SampleSetManifest):
                spec = resolve(record.variant)
                self._save(sets, f"{layout.variant(self.config, spec)}/samples")
                key = layout.sample_grid(self.config, spec, record.step)
                if self.store.exists(key):
                    shown.append((f"{spec.name}, step {record.step:,}", self.store.read(key)))
        Path(grids.path).write_text(artifacts.page(shown), encoding="utf-8")
        grids.metadata["store"] = sets.metadata["store"]

    def metrics(self, metrics: MetricsArtifact, summary: Artifact) -> None:
        """Every checkpoint's primary metric as numbers, and all metrics as a table."""
        found = [record for record in self.records if isinstance(record, MetricsRecord)]
        for record in found:
            metrics.log_metric(f"{record.metric}_step_{record.step}", record.metrics[record.metric].value)
        Path(summary.path).write_text(artifacts.metrics_table(found), encoding="utf-8")
        folder = f"{layout.variant(self.config, resolve(found[-1].variant))}/metrics"
        for artifact in (metrics, summary):
            self._place(artifact, folder)

    def report(self, page: Artifact, verdict: Artifact) -> None:
        """The report, and its verdict and table as text."""
        folder = layout.report(self.config)
        Path(page.path).write_bytes(self.store.read(f"{folder}/{layout.REPORT_PAGE}"))
        Path(verdict.path).write_text(artifacts.verdict_text(self.config, self.store), encoding="utf-8")
        for artifact in (page, verdict):
            self._place(artifact, folder)

    def _save(self, artifact: Artifact, key: str) -> None:
        """Keep the last record in the artifact."""
        Path(artifact.path).write_bytes(self.records[-1].to_json())
        self._place(artifact, key)

    def _place(self, artifact: Artifact, key: str) -> None:
        artifact.metadata["store"] = f"{self.store.url}/{key}"


def run_step(stage: str, run: Run, variant: str | None = None) -> StepResult:
    """Run a stage in this process; it returns at once when its result is complete.

    A DitError becomes one line and the process's exit code; under a lifeline all output becomes events.
    """
    return _spoken(_named(stage, variant), lambda: _stage(stage, run.study, run.root, run.all_overrides(), variant))


def run_job(stage: JobStage, run: Run, variant: str, image: str) -> StepResult:
    """As `run_step`; in a run of Kubeflow Pipelines a job of many pods, of this image, does the work."""
    if KFP_POD not in os.environ:
        return run_step(stage, run, variant)

    def launch() -> StepResult:
        from pipelines.jobs.launch import run as launch_job  # the Kubernetes client, which no other step needs

        overrides = run.all_overrides()
        records = launch_job(stage, run.study, run.root, overrides, variant, image)
        config = study_file.load_text(run.study, overrides)
        return StepResult(config, _opened(run.root, config), records)

    return _spoken(_named(stage, variant), launch)


def run_part(dataset_study: str, root: str, overrides: list[str], part: tuple[int, int]) -> StepResult:
    """Make part (k, n) of the shards; of the overrides only those of the dataset count."""
    counting = [one for one in overrides if one.partition("=")[0].strip().split(".")[0] in _PART_SECTIONS]
    return _spoken(f"prepare {part[0]}/{part[1]}", lambda: _stage("prepare", dataset_study, root, counting, part=part))


def run_merge(run: Run) -> StepResult:
    """Join the shards of all parts."""

    def join() -> StepResult:
        try:
            return _stage("prepare", run.study, run.root, run.all_overrides(), function="merge")
        except MissingError as error:
            # A part that came from the cache says that it was made once, not that its shards are still there.
            raise MissingError(f"{error}; or, where a part was taken from the cache: dit submit --cache off") from None

    return _spoken("merge", join)


def _named(stage: str, variant: str | None) -> str:
    return f"{stage} {resolve(variant).name}" if variant else stage


def _spoken(name: str, work: Callable[[], StepResult]) -> StepResult:
    """Do a step's work; why it fails is said where its starter looks."""
    with events.spoken(name) if parent_watch.end_with_parent() else nullcontext(None) as starter:
        try:
            return work()
        except DitError as error:
            message = f"{name}: {one_line(error)}"
            _leave_reason(message)
            if starter is not None:
                starter.tell(events.Event("error", message, code=error.exit_code))
            else:
                sys.stderr.write(f"dit: {message}\n")
            raise SystemExit(error.exit_code) from None
        except Exception as error:
            _leave_reason(f"{name}: {type(error).__name__}: {one_line(error)}; its log has the traceback")
            raise


def _leave_reason(message: str) -> None:
    """Have Kubernetes show it as the reason why the pod failed, and so the pipelines' UI as the step's."""
    # What kubelet mounts there is writable for every user; where it is not, the log still has the reason.
    if KFP_POD in os.environ:
        with suppress(OSError):
            _TERMINATION_LOG.write_bytes(message.encode()[:_TERMINATION_BYTES])


def _stage(
    stage: str,
    study: str,
    root: str,
    overrides: list[str],
    variant: str | None = None,
    *,
    function: str = "run",
    **options: Any,
) -> StepResult:
    config = study_file.load_text(study, overrides)
    store = _opened(root, config)
    call = getattr(importlib.import_module(f"dit.stages.{stage}"), function)
    with _alone(f"{store.url} {config.study} {variant or ''}"):
        result = call(config, store, *([variant] if variant else []), **options)
    records = result if isinstance(result, list) else [result]
    return StepResult(config, store, [record for record in records if record is not None])


def _opened(root: str, config: StudyConfig) -> Store:
    """The store; in a pod, beside which nobody sits, also one that is away for a while."""
    limit = config.cluster.patience.api if KFP_POD in os.environ else 0
    return retry(lambda: open_store(root), StoreError, limit)


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """Let one step at a time work on a variant: a killed run's last step may still be writing its checkpoint."""
    path = cache_dir() / "locks" / hashlib.sha256(what.encode()).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stdout.write("another run is at this; waiting for its step to end\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
