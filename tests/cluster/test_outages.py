"""Scenario 4: servers that are away for a minute while a training runs."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from kube import kubectl, until
from mlflow import MlflowClient
from studies import Site, Study

SECONDS = 60
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200), pytest.mark.usefixtures("dataset")]


@contextmanager
def scaled_down(name: str) -> Iterator[None]:
    """A server of ours without a pod."""
    kubectl("scale", f"deployment/{name}", "--replicas=0", "-n", "dit-scaling")
    try:
        yield
    finally:
        kubectl("scale", f"deployment/{name}", "--replicas=1", "-n", "dit-scaling")
        kubectl("rollout", "status", f"deployment/{name}", "-n", "dit-scaling", "--timeout=240s")


@contextmanager
def api_stopped() -> Iterator[None]:
    """Whoever starts the tests knows how: commands in STOP_API and START_API."""
    subprocess.run(os.environ["STOP_API"], shell=True, check=True)
    try:
        yield
    finally:
        subprocess.run(os.environ["START_API"], shell=True, check=True)
        until("the API server is back", lambda: kubectl("get", "--raw", "/readyz"), 120)


def away_for_a_minute(study: Study, outage: Callable[[], object]) -> None:
    """An outage that begins between two checkpoints; afterwards the training goes on."""
    with outage():
        time.sleep(SECONDS)
    study.past(study.newest_checkpoint() + 2 * study.config.fit.checkpoint_every)


def test_servers_that_are_away_cost_no_point(site: Site) -> None:
    study = site.study("outages", "train.steps=6000", "fit.checkpoint_every=100", "cluster.replicas=2")
    launcher = study.launch()
    study.past(100)
    outages = [lambda: scaled_down("s3"), lambda: scaled_down("mlflow")]
    if "STOP_API" in os.environ:
        outages.append(api_stopped)
    for outage in outages:
        away_for_a_minute(study, outage)
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
