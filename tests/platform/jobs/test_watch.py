"""Waiting for a job, while the API server restarts or refuses."""

from __future__ import annotations

import pytest
from http_fakes import Answer
from job_api import DENIED, JOB, RUNNING, SUCCEEDED, Api, job, pod, spec

from pipelines.cluster.client import ApiRefused, Cluster
from pipelines.jobs import watch

UNKNOWN: Answer = (401, {"message": "Unauthorized"})


def test_a_launcher_survives_refusals_of_a_restarting_api_server(api: Api, cluster: Cluster) -> None:
    api.job, api.pods = job(RUNNING), [pod(0, "a"), pod(1, "b")]
    api.logs = {"a": "", "b": ""}

    def done() -> None:
        api.job = job(SUCCEEDED)

    api.before["GET", JOB] = [lambda: None, lambda: DENIED, lambda: UNKNOWN, done]
    watch.wait(cluster, spec(), "job-1")
    assert api.before["GET", JOB] == []


@pytest.mark.parametrize("what", [JOB, "pods", "events", "workloads"])
def test_a_missing_permission_fails_at_once(what: str, api: Api, cluster: Cluster) -> None:
    api.job = job()
    api.before["GET", what] = [lambda: DENIED]
    with pytest.raises(ApiRefused, match="RBAC"):
        watch.wait(cluster, spec("cluster.queue=gpus"), "job-1")
