"""A study onto Kubeflow Pipelines: `make submit`, `make terminate`.

python -m pipelines.submit configs/digits.yaml --root s3://bucket/dit [--wait]
python -m pipelines.submit --terminate RUN_ID
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from dit.console import program, say
from dit.console.formatting import format_duration
from dit.errors import DitError, InputError
from dit.study import study_file
from dit.study.config import StudyConfig
from pipelines.cluster.client import ApiUnavailable, Cluster
from pipelines.cluster.retry import patiently
from pipelines.compile import compile_study, pushed_image
from pipelines.jobs.names import LAUNCHER, RUNS_NAMESPACE
from pipelines.preflight.check import preflight
from pipelines.runs.api import ENDPOINT, EXPERIMENT, Pipelines, PipelinesUnavailable, endpoint_of
from pipelines.runs.model import SUCCEEDED, Run
from pipelines.runs.steps import CONTAINER, RUN_LABEL, failures, last_death, reason_in, steps
from pipelines.runs.workflow import seen_in

POLL_SECONDS = 10.0
_LOG_LINES = 100


def submit(config: StudyConfig, root: str, image: str, options: argparse.Namespace) -> None:
    """Check, compile, start the run, and wait for its end if asked to.

    Raises InputError for what cannot run, DitError for a run that ended in any way but well.
    """
    endpoint = endpoint_of(options.endpoint)
    package = compile_study(config, root, image, Path("build") / f"{config.study}.yaml")
    preflight(config, root, endpoint, options.runs_namespace)
    pipelines = Pipelines(endpoint)
    experiment = pipelines.experiment(options.experiment, create=True)
    name = options.run or f"{config.study}-{datetime.now():%Y%m%d-%H%M%S}"
    uid = pipelines.create(str(experiment), name, package, LAUNCHER, caching=options.cache == "on")
    say(f"run {uid} ({name}) in experiment {options.experiment}: {pipelines.url(uid)}")
    if options.wait:
        wait(pipelines, uid, config.cluster.patience.api, options.runs_namespace)
    else:
        say(f"see how it goes: dit status {options.study} --root {root} --run {uid}")


def wait(pipelines: Pipelines, uid: str, patience: float, namespace: str = RUNS_NAMESPACE) -> None:
    """Return when a run has succeeded, for days where need be, and tell what changes.

    DitError with the failed steps when it ends in any other way; PipelinesUnavailable when the server is away for
    `patience` seconds. `namespace` is that of the steps' pods.
    """
    told: dict[str, str] = {}
    workflows = _Workflows(namespace)
    while True:
        run = workflows.seen(patiently(lambda: pipelines.run(uid), PipelinesUnavailable, patience))
        for step in steps(run):
            if step.state and told.get(step.name) != step.state:
                say(f"{step.name}: {step.state.lower()}")
                told[step.name] = step.state
        if run.over:
            break
        time.sleep(POLL_SECONDS)
    if run.state != SUCCEEDED:
        raise DitError(_failure(pipelines, run, namespace))
    took = f" in {format_duration((run.ended - run.created).total_seconds())}" if run.ended and run.created else ""
    say(f"run {uid}: succeeded{took}")


class _Workflows:
    """What a run's workflow says of the steps of a large run; where we may not ask it, that is told once."""

    def __init__(self, namespace: str) -> None:
        self._cluster: Cluster | None = None
        self._told = False
        try:
            self._cluster = Cluster.connect().within(namespace)
        except InputError as error:
            self._tell(error)

    def seen(self, run: Run) -> Run:
        """The run with its steps as they are now, as far as that can be known."""
        try:
            return seen_in(run, self._cluster) if self._cluster else run
        except ApiUnavailable:
            # What the server says of the steps may be old news, which is better than none at the end.
            return run if run.over else replace(run, tasks=())
        except DitError as error:
            self._tell(error)
            return run

    def _tell(self, error: DitError) -> None:
        if not self._told:
            say(f"Kubeflow Pipelines shows old states of a large run's steps; newer ones cannot be asked for: {error}")
        self._told = True


def _failure(pipelines: Pipelines, run: Run, namespace: str) -> str:
    """That a run has failed; why is told before, a line for each failed step."""
    failed = [step.name for step in failures(run)]
    for name, why in reasons(run, failed, namespace).items():
        say(f"{name}: {why}")
    where = f" at {', '.join(failed)}" if failed else ""
    said = f": {run.message}" if run.message else ""
    return f"run {run.uid} ended {run.state}{where}{said}; {pipelines.url(run.uid)}"


def reasons(run: Run, titles: Sequence[str], namespace: str) -> dict[str, str]:
    """Step -> why it failed, in the words of its newest pod; where there is no telling, how to find out."""
    see = f"kubectl get pods -n {namespace} -l {RUN_LABEL}={run.uid}"
    try:
        cluster = Cluster.connect().within(namespace)
        pods = cluster.pods(f"{RUN_LABEL}={run.uid}")
        return {title: _reason(cluster, title, last_death(run, title, pods)) or f"failed; {see}" for title in titles}
    except DitError as error:
        return {title: f"failed; {see}; its pods cannot be asked from here: {error}" for title in titles}


def _reason(cluster: Cluster, title: str, death: tuple[str, str] | None) -> str:
    if death is None:
        return ""
    pod, said = death
    said = said or reason_in(cluster.last_log(pod, CONTAINER, _LOG_LINES))
    return f"{said.removeprefix(f'{title}: ') or 'failed'}; kubectl logs -n {cluster.namespace} {pod} -c {CONTAINER}"


def main(arguments: list[str] | None = None) -> int:
    """Exit code of `python -m pipelines.submit`."""
    options = _parser().parse_args(arguments)
    act = _terminate if options.terminate else _submit
    return program.exit_code(
        lambda: act(options), "interrupted; what was submitted goes on: make status, make terminate RUN=..."
    )


def _terminate(options: argparse.Namespace) -> None:
    Pipelines(endpoint_of(options.endpoint)).terminate(options.terminate)
    say(f"run {options.terminate} is told to end; the reaper deletes its jobs")


def _submit(options: argparse.Namespace) -> None:
    if options.study is None or options.root is None:
        raise InputError("give a study and --root; python -m pipelines.submit configs/digits.yaml --root s3://...")
    config = study_file.load(options.study, options.overrides)
    submit(config, options.root, options.image or pushed_image(), options)


def _parser() -> argparse.ArgumentParser:
    parser = program.parser("pipelines.submit", __doc__)
    parser.add_argument("study", type=Path, nargs="?", help="study file, such as configs/digits.yaml")
    parser.add_argument("--root", help="store of all results: s3://bucket/prefix")
    parser.add_argument("--image", help="image of all steps and jobs, by digest (default: the one last pushed)")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--endpoint", help=f"server of Kubeflow Pipelines (default: {ENDPOINT})")
    parser.add_argument("--runs-namespace", default=RUNS_NAMESPACE, help="where steps run (default: %(default)s)")
    parser.add_argument("--experiment", default=EXPERIMENT, help="made where missing (default: %(default)s)")
    parser.add_argument("--run", metavar="NAME", help="name of the run (default: the study's, and the time)")
    parser.add_argument("--cache", choices=("on", "off"), default="on", help="take over steps of earlier runs")
    parser.add_argument("--wait", action="store_true", help="until the run ends; fails when it does")
    parser.add_argument("--terminate", metavar="RUN_ID", help="end a run, instead")
    return parser


if __name__ == "__main__":
    sys.exit(main())
