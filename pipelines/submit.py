"""A study onto Kubeflow Pipelines: `dit submit`, `dit terminate`."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime

from dit.console import say
from dit.console.formatting import format_duration
from dit.errors import DitError, InputError
from dit.study.config import StudyConfig
from pipelines.cluster.client import ApiUnavailable, Cluster
from pipelines.cluster.retry import retry
from pipelines.compile import compile_study, package_of
from pipelines.jobs.names import RUNS_NAMESPACE, STEP
from pipelines.preflight.check import preflight
from pipelines.runs.api import Pipelines, PipelinesUnavailable, endpoint_of
from pipelines.runs.model import SUCCEEDED, Run
from pipelines.runs.reasons import reasons
from pipelines.runs.steps import failures, steps
from pipelines.runs.workflow import seen_in

POLL_SECONDS = 10.0


@dataclass(frozen=True)
class Submission:
    """Where and how a study is submitted."""

    endpoint: str | None
    """Address of Kubeflow Pipelines; None takes KFP_ENDPOINT."""
    runs_namespace: str
    """Namespace of the steps' pods."""
    experiment: str
    run: str | None
    """Name of the run; None makes one from the study and the time."""
    caching: bool
    wait: bool


def submit(config: StudyConfig, root: str, image: str, options: Submission) -> str:
    """Check, compile, start the run, and wait for its end if asked to; the run's id.

    Raises InputError for what cannot run, DitError for a run that ended in any way but well.
    """
    endpoint = endpoint_of(options.endpoint)
    package = compile_study(config, root, image, package_of(config))
    preflight(config, root, endpoint, options.runs_namespace)
    pipelines = Pipelines(endpoint)
    experiment = pipelines.experiment(options.experiment, create=True)
    name = options.run or f"{config.study}-{datetime.now():%Y%m%d-%H%M%S}"
    uid = pipelines.create(str(experiment), name, package, STEP, caching=options.caching)
    say(f"run {uid} ({name}) in experiment {options.experiment}: {pipelines.url(uid)}")
    if options.wait:
        wait(pipelines, uid, config.cluster.patience.api, options.runs_namespace)
    return uid


def terminate(uid: str, endpoint: str | None) -> None:
    """End a run.

    Raises InputError when the run does not exist or has ended.
    """
    Pipelines(endpoint_of(endpoint)).terminate(uid)
    say(f"run {uid} will end; the reaper deletes its jobs")


def wait(pipelines: Pipelines, uid: str, patience: float, namespace: str = RUNS_NAMESPACE) -> None:
    """Wait until a run has succeeded, for days if necessary, and print each change of a step's state.

    `namespace` is that of the steps' pods.

    Raises DitError, which names the failed steps, when the run ends in any other way.
    Raises PipelinesUnavailable when the server is down for `patience` seconds.
    """
    shown: dict[str, str] = {}
    workflows = _Workflows(namespace)
    while True:
        run = workflows.seen(retry(lambda: pipelines.run(uid), PipelinesUnavailable, patience))
        for step in steps(run):
            if step.state and shown.get(step.name) != step.state:
                say(f"{step.name}: {step.state.lower()}")
                shown[step.name] = step.state
        if run.over:
            break
        time.sleep(POLL_SECONDS)
    if run.state != SUCCEEDED:
        raise DitError(_failure(pipelines, run, namespace))
    took = f" in {format_duration((run.ended - run.created).total_seconds())}" if run.ended and run.created else ""
    say(f"run {uid}: succeeded{took}")


class _Workflows:
    """Reads the states of a large run's steps from its workflow. If that is not permitted, prints this once."""

    def __init__(self, namespace: str) -> None:
        self._cluster: Cluster | None = None
        self._reported = False
        try:
            self._cluster = Cluster.connect().within(namespace)
        except InputError as error:
            self._report(error)

    def seen(self, run: Run) -> Run:
        """The run with the newest known states of its steps."""
        try:
            return seen_in(run, self._cluster) if self._cluster else run
        except ApiUnavailable:
            # The server's states may be old. At the end of a run they are better than none.
            return run if run.over else replace(run, tasks=())
        except DitError as error:
            self._report(error)
            return run

    def _report(self, error: DitError) -> None:
        if not self._reported:
            say(f"Kubeflow Pipelines has old states of a large run's steps, and the workflow cannot be read: {error}")
        self._reported = True


def _failure(pipelines: Pipelines, run: Run, namespace: str) -> str:
    """The error of a failed run. Prints the reason of each failed step first."""
    failed = [step.name for step in failures(run)]
    for name, reason in reasons(run, failed, namespace).items():
        say(f"{name}: {reason}")
    where = f" at {', '.join(failed)}" if failed else ""
    message = f": {run.message}" if run.message else ""
    return f"run {run.uid} ended {run.state}{where}{message}; {pipelines.url(run.uid)}"
