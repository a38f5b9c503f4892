"""Scenario 3: a job outlives its launcher, but not its run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kube import find, get, kubectl, until
from studies import Site
from workflows import Run, pipelines_namespace

from pipelines.jobs import names

PYTORCHJOB = "pytorchjobs.kubeflow.org"
RECIPE = ("train.steps=400", "fit.checkpoint_every=40", "cluster.replicas=2")
REAPED_SECONDS = 15
pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(1200), pytest.mark.usefixtures("dataset")]


@pytest.fixture(scope="module")
def pipelines() -> Iterator[None]:
    with pipelines_namespace():
        yield


def test_a_retried_launcher_adopts_the_job(site: Site) -> None:
    study = site.study("evicted", *RECIPE)
    launcher = study.launch()
    study.past(40)
    pods = study.workers()
    launcher.delete()
    job = get(PYTORCHJOB, study.job())
    assert job is not None
    ended = study.launch().end(600)
    assert ended.code == 0, ended.log
    assert f"adopted, created {job['metadata']['creationTimestamp']}" in ended.log
    # The same job, without restarts: no step was trained twice.
    left = get(PYTORCHJOB, study.job())
    assert left is not None
    assert left["metadata"]["uid"] == job["metadata"]["uid"]
    # (The operator removes a pod that is still ending when the first one has ended well.)
    ran = study.workers()
    assert ran
    assert {pod["metadata"]["uid"] for pod in ran} <= {pod["metadata"]["uid"] for pod in pods}
    assert not any(pod["status"]["containerStatuses"][0]["restartCount"] for pod in ran)
    study.check_losses()


# The launcher is a child of the step's process, which is PID 1 of its container.
_KILL_CHILD = """
import os, pathlib
for entry in pathlib.Path("/proc").iterdir():
    if entry.name.isdecimal() and (entry / "stat").read_text().rpartition(")")[2].split()[1] == "1":
        os.kill(int(entry.name), 9)
"""


@pytest.mark.usefixtures("pipelines")
def test_a_launcher_that_is_killed_in_its_steps_pod_adopts_the_job(site: Site) -> None:
    study = site.study("launcher-killed", *RECIPE)
    run = Run.start(study.config.study)
    step = run.launch(study)
    study.past(40)
    job = get(PYTORCHJOB, study.job())
    assert job is not None
    kubectl("exec", "-n", step.namespace, step.name, "--", "python", "-c", _KILL_CHILD)
    step.says("the launcher was killed by signal 9 (SIGKILL); memory?; retry in", 30)
    step.says(f"adopted, created {job['metadata']['creationTimestamp']}", 60)
    ended = step.end(600)
    assert ended.code == 0, ended.log
    left = get(PYTORCHJOB, study.job())
    assert left is not None
    assert left["metadata"]["uid"] == job["metadata"]["uid"]
    study.check_losses()
    run.terminate()


@pytest.mark.usefixtures("pipelines")
def test_a_run_that_is_terminated_leaves_no_job_and_touches_no_other(site: Site) -> None:
    first, second = (site.study(name, *RECIPE) for name in ("terminated", "going-on"))
    runs = [Run.start(study.config.study) for study in (first, second)]
    steps = [run.launch(study) for run, study in zip(runs, (first, second), strict=True)]
    first.past(40)
    runs[0].terminate()
    # Kubeflow Pipelines would end the step; here the test does.
    steps[0].delete()

    def gone() -> bool:
        return get(PYTORCHJOB, first.job()) is None and not find("pods", f"{names.JOB}={first.job()}")

    until("job and pods of the terminated run are gone", gone, REAPED_SECONDS, pause=0.5)
    ended = steps[1].end(600)
    assert ended.code == 0, ended.log
    second.check_losses()
