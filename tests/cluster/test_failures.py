"""Scenario 6: a training that cannot go on is told with its pod, its rank and its reason, and its step is red."""

from __future__ import annotations

import re

import pytest
from studies import Site

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200), pytest.mark.usefixtures("dataset")]


def test_a_training_that_diverges(site: Site) -> None:
    study = site.study("diverges", "train.steps=200", "train.learning_rate=1e30", "cluster.replicas=2")
    ended = study.launch().end(600)
    assert ended.code == 1
    pattern = rf"pod {study.job()}-worker-[01] \(rank [01]\).*step \d+: .* is not finite"
    assert re.search(pattern, ended.last_line), ended.log
    assert study.mlflow_run().info.status == "FAILED"


def test_a_pod_that_runs_out_of_memory(site: Site) -> None:
    study = site.study(
        "memory", "train.steps=200", "train.global_batch=16384", "cluster.replicas=2", "cluster.pod.memory=1Gi"
    )
    ended = study.launch().end(600)
    assert ended.code == 1
    pattern = rf"pod {study.job()}-worker-[01] \(rank [01]\), OOMKilled.*raise cluster.pod.memory \(1Gi\)"
    assert re.search(pattern, ended.last_line), ended.log
    assert study.mlflow_run().info.status == "FAILED"
