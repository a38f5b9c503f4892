"""Scenario 8: the study as TrainJobs, with a runtime that fails at once and keeps the failed pod."""

from __future__ import annotations

import re

import pytest
from kube import get, has_crd, kubectl
from studies import Running, Site, Study

from dit.errors import FinalError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200), pytest.mark.usefixtures("dataset")]
TRAINJOB = "trainjobs.trainer.kubeflow.org"
AS_TRAINJOB = ("cluster.job=trainjob", "cluster.replicas=2")


@pytest.fixture(scope="module")
def trainer() -> None:
    if not has_crd(TRAINJOB):
        pytest.skip(f"the cluster does not serve {TRAINJOB}: Kubeflow Trainer is not installed")


@pytest.fixture(scope="module")
def launched(site: Site, trainer: None) -> dict[str, tuple[Study, Running]]:  # noqa: ARG001
    """A training that succeeds and one that fails, in parallel, and their launchers."""
    recipes = {"well": (), "diverges": ("train.learning_rate=1e30", "health.recipe=off")}
    studies = {
        name: site.study(f"trainjob-{name}", "train.steps=200", *AS_TRAINJOB, *recipe)
        for name, recipe in recipes.items()
    }
    return {name: (study, study.launch()) for name, study in studies.items()}


def test_a_trainjob_has_the_losses_of_an_undisturbed_run(launched: dict[str, tuple[Study, Running]]) -> None:
    study, launcher = launched["well"]
    ended = launcher.end(600)
    assert ended.code == 0, ended.log
    assert study.record().world_size == 2
    study.check_losses()


def test_a_failed_pod_fails_the_job_at_once_and_stays(launched: dict[str, tuple[Study, Running]]) -> None:
    study, launcher = launched["diverges"]
    ended = launcher.end(300)
    assert ended.code == FinalError.exit_code
    assert "is not finite" in ended.last_line, ended.log
    assert len(re.findall(r"^\S+ ended: ", ended.log, re.MULTILINE)) <= 2, "pods were retried"
    failed = [pod["metadata"]["name"] for pod in study.workers() if pod["status"]["phase"] == "Failed"]
    assert any(name in ended.last_line for name in failed)
    assert "is not finite" in "".join(kubectl("logs", "-n", "dit-scaling", name) for name in failed)
    assert get(TRAINJOB, study.job()) is not None
