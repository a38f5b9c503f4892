"""Waiting for a job, while the API server restarts or refuses."""

from __future__ import annotations

import pytest
from http_fakes import Answer
from job_objects import DENIED, NAME, RUNNING, SUCCEEDED, Api, job, running_pod, spec

from pipelines.cluster.client import ApiRefused, Cluster
from pipelines.jobs import watch

UNKNOWN: Answer = (401, {"message": "Unauthorized"})


def test_a_launcher_survives_refusals_of_a_restarting_api_server(api: Api, cluster: Cluster) -> None:
    api.job, api.pods = job(RUNNING), [running_pod(0, "a"), running_pod(1, "b")]
    api.logs = {"a": "", "b": ""}

    def done() -> None:
        api.job = job(SUCCEEDED)

    api.before["GET", NAME] = [lambda: None, lambda: DENIED, lambda: UNKNOWN, done]
    watch.wait(cluster, spec(), "job-1")
    assert api.before["GET", NAME] == []


@pytest.mark.parametrize("what", [NAME, "pods", "events", "workloads"])
def test_a_missing_permission_fails_at_once(what: str, api: Api, cluster: Cluster) -> None:
    api.job = job()
    api.before["GET", what] = [lambda: DENIED]
    with pytest.raises(ApiRefused, match="RBAC"):
        watch.wait(cluster, spec(), "job-1")
