"""Scenario 6: a failed training is reported with its pod, rank and reason, and its step fails."""

from __future__ import annotations

import re

import pytest
from studies import Running, Site, Study

from dit.errors import FinalError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200), pytest.mark.usefixtures("dataset")]
OVERRIDES = {
    "diverges": ("train.learning_rate=1e30", "health.recipe=off"),
    "memory": ("train.global_batch=16384", "cluster.pod.memory=1Gi"),
}
REASONS = {
    "diverges": r".* is not finite",
    "memory": r", OOMKilled.*raise cluster.pod.memory \(1Gi\)",
}


@pytest.fixture(scope="module")
def failing(site: Site) -> dict[str, tuple[Study, Running]]:
    """Trainings that fail, in parallel, and their launchers."""
    common = ("train.steps=200", "cluster.replicas=2")
    studies = {name: site.study(name, *common, *overrides) for name, overrides in OVERRIDES.items()}
    return {name: (study, study.launch()) for name, study in studies.items()}


@pytest.mark.parametrize("cause", OVERRIDES)
def test_a_failed_training_names_pod_rank_and_reason(failing: dict[str, tuple[Study, Running]], cause: str) -> None:
    study, launcher = failing[cause]
    ended = launcher.end(600)
    assert ended.code == FinalError.exit_code
    pattern = rf"pod {study.job()}-worker-[01] \(rank [01]\){REASONS[cause]}"
    assert re.search(pattern, ended.last_line), ended.log
    assert study.mlflow_run().info.status == "FAILED"
