"""Scenario 2: after faults of workers and jobs, the losses are those of an undisturbed training."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pytest
from hand import Hand, container
from kube import NAMESPACE, Object, delete, kubectl, until
from mlflow import MlflowClient
from studies import Ended, Site, Study

RECIPE = ("train.steps=400", "fit.checkpoint_every=20")
PYTORCHJOB = "pytorchjobs.kubeflow.org"
GONE_SECONDS = 15
ENDED_SECONDS = 5
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200), pytest.mark.usefixtures("dataset")]


def at_random_moment_after(study: Study, step: int) -> None:
    """Return at a random moment between two checkpoints."""
    study.past(step)
    time.sleep(random.uniform(0.0, 1.0))


def test_a_worker_is_killed_three_times(site: Site, hand: Hand) -> None:
    # Longer than the others, so that some seconds are left after the last kill; but not longer, because the difference
    # in rounding between two ranks and one grows with each step.
    study = site.study("killed", *RECIPE, "train.steps=600", "cluster.replicas=2")
    launcher = study.launch()
    for step in (20, 80, 140):
        at_random_moment_after(study, step)
        hand.kill(random.choice(study.workers()))
    ended = launcher.end(600)
    assert ended.code == 0, ended.log
    assert ended.log.count("SIGKILL") >= 3
    study.check_losses()


def torchrun_killed(study: Study, hand: Hand) -> Ended:
    launcher = study.launch()
    at_random_moment_after(study, 20)
    pod = random.choice(study.workers())
    hand.kill(pod, "pipelines.jobs.torchrun")
    until("its processes are gone", lambda: not hand.processes(container(pod)), ENDED_SECONDS, pause=0.2)
    return launcher.end(600)


def worker_deleted(study: Study) -> Ended:
    launcher = study.launch()
    at_random_moment_after(study, 20)
    delete("pod", random.choice(study.workers())["metadata"]["name"])
    return launcher.end(600)


def job_deleted(study: Study) -> Ended:
    launcher = study.launch()
    at_random_moment_after(study, 20)
    delete(PYTORCHJOB, study.job())
    return launcher.end(300)


@dataclass(frozen=True)
class Disturbed:
    """A training, and the end of its launcher after a fault."""

    study: Study
    mishap: Future[Ended]


@pytest.fixture(scope="module")
def disturbed(site: Site, hand: Hand) -> Iterator[dict[str, Disturbed]]:
    """Trainings in parallel: they mostly wait for pods."""
    mishaps = {"orphans": partial(torchrun_killed, hand=hand), "deleted": worker_deleted, "again": job_deleted}
    with ThreadPoolExecutor() as pool:
        studies = {name: site.study(name, *RECIPE, "cluster.replicas=2") for name in mishaps}
        yield {name: Disturbed(study, pool.submit(mishaps[name], study)) for name, study in studies.items()}


def test_a_job_is_deleted_and_submitted_again(disturbed: dict[str, Disturbed]) -> None:
    study, ended = disturbed["again"].study, disturbed["again"].mishap.result()
    assert ended.code == 1
    assert "it was deleted; run the step again to resume" in ended.last_line
    ended = study.launch().end(600)
    assert ended.code == 0, ended.log
    study.check_losses()


# torchrun is not PID 1 of the pod's namespace, so the kernel does not end its processes with it.
@pytest.mark.parametrize("fault", ["orphans", "deleted"])
def test_a_training_outlives_a_killed_torchrun_or_a_deleted_worker(disturbed: dict[str, Disturbed], fault: str) -> None:
    ended = disturbed[fault].mishap.result()
    assert ended.code == 0, ended.log
    disturbed[fault].study.check_losses()


# All processes of the pod, torchrun too, or the worker alone.
@pytest.mark.long
@pytest.mark.parametrize("text", ["", "-u -m dit train"], ids=["pod", "worker"])
def test_a_frozen_worker_is_named_and_its_job_resumes_from_the_checkpoint(text: str, site: Site, hand: Hand) -> None:
    settings = ("cluster.replicas=2", "cluster.patience.stall=300", "cluster.pod.grace_seconds=20")
    study = site.study(f"frozen-{'worker' if text else 'pod'}", *RECIPE, *settings)
    launcher = study.launch()
    at_random_moment_after(study, 20)
    # Rank 0 may be the frozen one, and it is the one that creates the run.
    experiment = study.config.study
    until("MLflow has its run", lambda: MlflowClient(site.mlflow).get_experiment_by_name(experiment), 60)
    first, frozen = study.workers(), random.choice(study.workers())
    hand.kill(frozen, text, signal.SIGSTOP)
    line = launcher.says("no sign of life since", 400)
    assert f"on {frozen['metadata']['name']}: no sign of life" in line
    assert "last step" in line
    until("MLflow names it", lambda: "no sign of life" in study.mlflow_run().data.tags.get("health/progress", ""), 60)
    ended = launcher.end(900)
    assert ended.code == 0, ended.log
    assert "it is created again to resume from the last checkpoint" in ended.log
    assert {pod["metadata"]["uid"] for pod in study.workers()}.isdisjoint(pod["metadata"]["uid"] for pod in first)
    study.check_losses()


@pytest.mark.alone
def test_a_job_of_8_pods_resumes_with_4(site: Site) -> None:
    study = site.study("smaller", *RECIPE, "cluster.replicas=8")
    study.launch()
    at_random_moment_after(study, 20)
    smaller = Study(site, (*study.overrides, "cluster.replicas=4"))
    refused = smaller.launch().end(60)
    assert refused.code == 2
    assert "runs another spec" in refused.last_line
    delete(PYTORCHJOB, study.job())
    ended = smaller.launch().end(600)
    assert ended.code == 0, ended.log
    assert smaller.record().world_size == 4
    smaller.check_losses()


@pytest.mark.alone
def test_a_pod_that_waits_for_the_others_is_gone_with_its_job(site: Site) -> None:
    # The node has no GPUs for the second pod, and the first waits in torchrun without worker processes.
    study = site.study("waiting", "train.global_batch=60", "cluster.replicas=2", "cluster.gpus_per_pod=5")
    study.launch()

    def waits() -> bool:
        return any("Rendezvous'ing" in kubectl("logs", "-n", NAMESPACE, pod["metadata"]["name"]) for pod in running())

    def running() -> list[Object]:
        return [pod for pod in study.workers() if pod["status"]["phase"] == "Running"]

    until("a pod waits for the other", waits, 120)
    delete(PYTORCHJOB, study.job())
    until("its pods are gone", lambda: not study.workers(), GONE_SECONDS)
