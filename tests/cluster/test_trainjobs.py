"""Scenario 8: the same study as TrainJobs, with a runtime of ours that fails at once and keeps the failed pod."""

from __future__ import annotations

import re

import pytest
from kube import get, has_crd, kubectl
from studies import Site

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200), pytest.mark.usefixtures("dataset", "trainer")]
TRAINJOB = "trainjobs.trainer.kubeflow.org"
AS_TRAINJOB = ("cluster.job=trainjob", "cluster.replicas=2")


@pytest.fixture(scope="module")
def trainer() -> None:
    if not has_crd(TRAINJOB):
        pytest.skip(f"the cluster knows no {TRAINJOB}: Kubeflow Trainer is not installed")


def test_same_losses(site: Site) -> None:
    study = site.study("trainjob", "train.steps=200", *AS_TRAINJOB)
    ended = study.launch().end(600)
    assert ended.code == 0, ended.log
    assert study.record().world_size == 2
    study.check_losses()


def test_a_failed_pod_fails_the_job_at_once_and_stays(site: Site) -> None:
    study = site.study("trainjob-diverges", "train.steps=200", "train.learning_rate=1e30", *AS_TRAINJOB)
    ended = study.launch().end(300)
    assert ended.code == 1
    assert "is not finite" in ended.last_line, ended.log
    assert len(re.findall(r"^\S+ ended: ", ended.log, re.MULTILINE)) <= 2, "pods were tried again"
    failed = [pod["metadata"]["name"] for pod in study.workers() if pod["status"]["phase"] == "Failed"]
    assert any(name in ended.last_line for name in failed)
    assert "is not finite" in "".join(kubectl("logs", "-n", "dit-scaling", name) for name in failed)
    assert get(TRAINJOB, study.job()) is not None
