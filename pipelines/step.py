"""One step of the pipeline, in its own process: call a stage by name and hand its records to kfp. Knows no kfp."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dit import layout, study_file
from dit.config import StudyConfig
from dit.errors import DitError
from dit.records import MetricsRecord, Record
from dit.storage import Store, cache_dir, open_store
from dit.variants import resolve
from pipelines import events, leash


class Artifact(Protocol):
    """What kfp gives a component for an output."""

    path: str
    metadata: dict[str, Any]


class MetricsArtifact(Artifact, Protocol):
    """kfp's Metrics."""

    def log_metric(self, metric: str, value: float) -> None:
        """Show a number in the pipelines' UI."""


@dataclass(frozen=True)
class StepResult:
    """What a stage returned, and where it wrote it."""

    config: StudyConfig
    store: Store
    records: list[Record]

    def save(self, artifact: Artifact) -> None:
        """Write the last record, and the store's address, into a kfp artifact."""
        Path(artifact.path).write_bytes(self.records[-1].to_json())
        artifact.metadata["store"] = self.store.url

    def log(self, metrics: MetricsArtifact) -> None:
        """Show every checkpoint's primary metric in the pipelines' UI."""
        for record in self.records:
            if isinstance(record, MetricsRecord):
                metrics.log_metric(f"{record.metric}_step_{record.step}", record.metrics[record.metric].value)
        metrics.metadata["store"] = self.store.url

    def publish(self, html: Artifact) -> None:
        """Copy the report to where the pipelines' UI shows it."""
        key = f"{layout.report(self.config)}/{layout.REPORT_PAGE}"
        Path(html.path).write_bytes(self.store.read(key))
        html.metadata["store"] = self.store.url


def run_step(stage: str, study: str, root: str, overrides: list[str], variant: str | None = None) -> StepResult:
    """Run a stage, which returns at once when its result is complete.

    A DitError becomes one line and the process's exit code; under a leash all output becomes events.
    """
    name = f"{stage} {resolve(variant).name}" if variant else stage
    with events.spoken(name) if leash.obey() else nullcontext(None) as starter:
        try:
            return _run(stage, study, root, overrides, variant)
        except DitError as error:
            message = f"{name}: {' '.join(str(error).split())}"
            if starter is not None:
                starter.tell(events.Event("error", message, code=error.exit_code))
            else:
                sys.stderr.write(f"dit: {message}\n")
            raise SystemExit(error.exit_code) from None


def _run(stage: str, study: str, root: str, overrides: list[str], variant: str | None) -> StepResult:
    config = study_file.load_text(study, overrides)
    store = open_store(root)
    call = importlib.import_module(f"dit.stages.{stage}").run
    with _alone(f"{store.url} {config.study} {variant or ''}"):
        result = call(config, store, variant) if variant else call(config, store)
    return StepResult(config, store, result if isinstance(result, list) else [result])


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
