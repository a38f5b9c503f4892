"""`dit status`: shows the progress of a study, and names what could not be reached."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from dit.console import console, say, table
from dit.errors import DitError, one_line
from dit.health import summary
from dit.report.tables import show_health
from dit.results.progress import StageProgress, pace_line, progress
from dit.results.stages import Work, step_names
from dit.storage import open_store
from dit.storage.open import parse_address
from dit.study import study_file
from dit.study.config import StudyConfig
from dit.study.records import HealthEvent
from pipelines.cluster.client import ApiUnavailable, Cluster
from pipelines.cluster.objects import Object
from pipelines.cluster.store_access import study_store
from pipelines.jobs import names
from pipelines.jobs.failure_cause import cause_of, deaths
from pipelines.jobs.kind import JobKind, Phase
from pipelines.jobs.names import JobStage
from pipelines.jobs.pending_reason import explain
from pipelines.jobs.registry import KINDS
from pipelines.jobs.spec import job_spec
from pipelines.jobs.watch import look
from pipelines.runs.model import Run
from pipelines.runs.reasons import delays, reasons
from pipelines.runs.status_table import COLUMNS, JobView, rows, under_way
from pipelines.runs.steps import failures
from pipelines.runs.workflow import seen_in
from pipelines.step.submitted import StudyInputs

_PAUSE_SECONDS = 10.0
_CHANGEABLE = ("steps", "cfg", "samples", "seed", "overrides")
"""Parameters of a run, without its root and image."""
T = TypeVar("T")


@dataclass
class _View:
    """The state of a study, as far as it could be read."""

    config: StudyConfig
    root: str
    stages: list[StageProgress] = field(default_factory=list)
    jobs: list[JobView] = field(default_factory=list)
    run: Run | None = None
    health: list[tuple[str, HealthEvent]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """Why pods do not run, and what could not be reached."""
    asked: int = 0
    failed: int = 0


def run(
    study: Path | str, root: str, overrides: list[str], run_id: str | None, experiment: str, watch: bool = False
) -> None:
    """Show the table of a study's run, by default the newest; with `watch`, refresh it until the run has ended.

    Raises DitError when nothing could be reached.
    """
    config = study_file.load(study, overrides)
    while True:
        view = _look(config, root, run_id, experiment)
        if watch and sys.stdout.isatty():
            console().clear()
        _show(view)
        if not watch or not under_way(view.stages, view.jobs, view.run):
            return
        time.sleep(_PAUSE_SECONDS)


def _look(config: StudyConfig, root: str, run_id: str | None, experiment: str) -> _View:
    view = _View(config, root)
    parse_address(root)
    if not root.startswith("s3://"):
        # A folder on this machine: its study does not run on a cluster.
        store = open_store(root)
        view.stages, view.health = progress(Work(config, store, compare_decoder=False)), summary.readings(config, store)
        return view
    if run_id or os.environ.get(names.KFP_ENDPOINT):
        view.run = _try(view, lambda: _find_run(config, run_id, experiment, view))
        config, root = view.config, view.root
    else:
        view.remarks.append(f"Kubeflow Pipelines is not shown: {names.KFP_ENDPOINT} is not set")
    cluster = _try(view, lambda: Cluster.connect().within(config.cluster.namespace))
    if cluster is not None:
        view.jobs = _try(view, lambda: _jobs(config, root, cluster, view)) or []
        if view.run is not None:
            _look_at_steps(view, view.run, cluster.within(names.RUNS_NAMESPACE))
    view.stages = _try(view, lambda: _stages(config, root, cluster, view)) or []
    if view.failed == view.asked:
        raise DitError(f"nothing could be reached: {'; '.join(view.remarks)}")
    return view


def _try(view: _View, call: Callable[[], T]) -> T | None:
    view.asked += 1
    try:
        return call()
    except DitError as error:
        view.failed += 1
        message = one_line(error)
        if message not in view.remarks:
            view.remarks.append(message)
        return None


def _find_run(config: StudyConfig, run_id: str | None, name: str, view: _View) -> Run | None:
    from pipelines.runs.api import Pipelines, endpoint_of  # loads kfp, needed only for a run

    pipelines = Pipelines(endpoint_of(None))
    run: Run | None = None
    if run_id:
        run = pipelines.run(run_id)
    else:
        experiment = pipelines.experiment(name)
        run = pipelines.latest(experiment, f"dit-{config.study}", view.root) if experiment else None
        if run is None:
            view.remarks.append(f"experiment {name} has no run of {config.study} at {view.root}; dit submit")
    if run is not None:
        view.remarks.insert(0, pipelines.url(run.uid))
        _as_submitted(run, view)
    return run


def _as_submitted(run: Run, view: _View) -> None:
    """Show the study as it was submitted: the file may have changed since."""
    if not run.study:
        return
    given = {key: value for key, value in run.parameters.items() if key in _CHANGEABLE}
    view.root = str(run.parameters.get("root", view.root))
    view.config = StudyInputs(run.study, **given).resolve(where=f"study of run {run.uid}")


def _look_at_steps(view: _View, run: Run, cluster: Cluster) -> None:
    current = view.run = _try(view, lambda: seen_in(run, cluster)) or run
    if current.over:
        failed = [step.name for step in failures(current)]
        view.remarks += [f"{name}: {reason}" for name, reason in reasons(current, failed, cluster.namespace).items()]
    else:
        view.remarks += _try(view, lambda: delays(current, cluster)) or []


def _jobs(config: StudyConfig, root: str, cluster: Cluster, view: _View) -> list[JobView]:
    selector = f"{names.SELECTOR},{names.STUDY}={config.study}"
    jobs = [(kind, job) for kind in KINDS.values() for job in cluster.find(kind.resource, selector)]
    # A study of the same name at another root is another study.
    own = names.root_label(root)
    ours = [(kind, job) for kind, job in jobs if job["metadata"]["labels"].get(names.ROOT, own) == own]
    return [_job(config, root, cluster, kind, job, view) for kind, job in ours]


def _job(config: StudyConfig, root: str, cluster: Cluster, kind: JobKind, job: Object, view: _View) -> JobView:
    labels = job["metadata"]["labels"]
    stage: JobStage = labels[names.STAGE]
    seed = labels.get(names.SEED)
    variant = labels[names.VARIANT] + (f"-seed-{seed}" if seed else "")
    spec = replace(job_spec(config, variant, stage, root, "its image"), name=job["metadata"]["name"])
    snapshot = look(cluster, kind, spec)
    reason = explain(spec, kind, snapshot) if snapshot.job is not None else None
    if reason is not None:
        view.remarks.append(str(reason))
    cause = cause_of(deaths(snapshot.pods))
    if cause is not None and snapshot.phase is not Phase.SUCCEEDED:
        view.remarks.append(f"pod {cause.pod} ended at {cause.finished:%Y-%m-%d %H:%M:%S} UTC: {cause.full}")
    step = f"{stage} {spec.run.name}"
    return JobView(step, kind.resource.kind, snapshot, spec.cluster.replicas)


def _stages(config: StudyConfig, root: str, cluster: Cluster | None, view: _View) -> list[StageProgress]:
    def read(cluster: Cluster | None) -> list[StageProgress]:
        with study_store(cluster, config.cluster, root, view.remarks.append) as store:
            view.health = summary.readings(config, store)
            return progress(Work(config, store, compare_decoder=False))

    try:
        return read(cluster)
    except ApiUnavailable as error:
        view.remarks.append(f"the store is read with this machine's settings: {error}")
        return read(None)


def _show(view: _View) -> None:
    config, root = view.config, view.root
    title = f"{config.study}, {root}"
    if view.run is not None:
        title += f": run {view.run.uid} ({view.run.name}) {view.run.state.lower()}"
    table(COLUMNS, rows(step_names(config), view.stages, view.jobs, view.run, datetime.now(UTC)), title=title)
    if view.health:
        say()
        show_health(view.health)
    for stage in view.stages:
        if line := pace_line(stage.ranks):
            say(f"{stage.name}: {line}")
    for remark in view.remarks:
        say(remark)
