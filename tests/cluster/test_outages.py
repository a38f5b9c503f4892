"""Scenario 4: outages of a minute of servers during a training."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
from kube import NAMESPACE, OURS, SERVICES, apply, delete, find, kubectl, until
from mlflow import MlflowClient
from studies import Site, Study

SECONDS = 60
# At the rate of the first steps; later ones are faster.
SECONDS_BEFORE_THE_LAST = 160
MEASURED = 200
LIMITS = "half-a-core"
pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(1200), pytest.mark.usefixtures("dataset")]


@contextmanager
def scaled_down(name: str) -> Iterator[None]:
    """One of the deployed servers, without a pod."""
    kubectl("scale", f"deployment/{name}", "--replicas=0", "-n", SERVICES)
    until(f"{name} is away", lambda: not find("pods", f"app.kubernetes.io/name={name}"), 60)
    try:
        yield
    finally:
        kubectl("scale", f"deployment/{name}", "--replicas=1", "-n", SERVICES)
        kubectl("rollout", "status", f"deployment/{name}", "-n", SERVICES, "--timeout=240s")


@contextmanager
def api_stopped() -> Iterator[None]:
    """Stop the API server with the commands in STOP_API and START_API."""
    subprocess.run(os.environ["STOP_API"], shell=True, check=True)
    try:
        yield
    finally:
        subprocess.run(os.environ["START_API"], shell=True, check=True)
        until("the API server is back", lambda: kubectl("get", "--raw", "/readyz"), 120)


@contextmanager
def mlflow_and_api_away() -> Iterator[None]:
    """Both at once, if the API server can be stopped: they have different clients."""
    with scaled_down("mlflow"), api_stopped() if "STOP_API" in os.environ else nullcontext():
        yield


def s3_away() -> AbstractContextManager[None]:
    return scaled_down("s3")


@pytest.fixture
def half_a_core() -> Iterator[None]:
    """A CPU limit for these pods, which work for minutes: other tests share the node."""
    limit = {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}}
    metadata = {"name": LIMITS, "namespace": NAMESPACE, "labels": OURS}
    apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": metadata, "spec": {"limits": [limit]}})
    yield
    delete("limitrange", LIMITS)


def long_enough(site: Site) -> Study:
    """A study whose training lasts until the last outage begins, at the rate of its first steps."""
    recipe = ("fit.checkpoint_every=100", "cluster.replicas=2")
    first = site.study("outages", f"train.steps={MEASURED}", *recipe)
    ended = first.launch().end(300)
    assert ended.code == 0, ended.log
    rate = first.record().images_per_second / first.config.train.global_batch
    steps = MEASURED + round(SECONDS_BEFORE_THE_LAST * rate, -2)
    return site.study("outages", f"train.steps={steps:.0f}", *recipe)


@pytest.mark.usefixtures("half_a_core")
def test_outages_of_servers_lose_no_point(site: Site) -> None:
    study = long_enough(site)
    launcher = study.launch()
    every = study.config.fit.checkpoint_every
    study.past(MEASURED + every)
    # The store's outage comes last: a training then waits at the second checkpoint, so it cannot end during it.
    for outage in (mlflow_and_api_away, s3_away):
        assert study.newest_checkpoint() < study.config.train.steps - every, "the training is over too early"
        with outage():
            time.sleep(SECONDS)
        study.past(min(study.newest_checkpoint() + 2 * every, study.config.train.steps))
    ended = launcher.end(600)
    assert ended.code == 0, ended.log
    wanted = dict.fromkeys(range(10, study.config.train.steps + 1, 10), 1)
    assert Counter(step for step, _ in study.losses()) == wanted
    run, client = study.mlflow_run(), MlflowClient(site.mlflow)

    def arrived() -> bool:
        return Counter(point.step for point in client.get_metric_history(run.info.run_id, "loss")) == wanted

    until("every point is in MLflow, once", arrived, 60)
    assert study.mlflow_run().info.status == "FINISHED"
    if "STOP_API" not in os.environ:
        pytest.skip("the servers of S3 and MLflow were away; STOP_API and START_API, for the API server, are not set")
