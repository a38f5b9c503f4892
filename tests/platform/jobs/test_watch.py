"""Waiting for a job, while the API server restarts or refuses."""

from __future__ import annotations

import re

import pytest
from http_fakes import Answer
from job_objects import (
    DENIED,
    NAME,
    RUNNING,
    SUCCEEDED,
    Api,
    condition,
    container,
    job,
    pod,
    running_pod,
    spec,
    terminated,
)

from dit.errors import DataError, DitError, FinalError, InputError, UnhealthyError
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


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (DataError, "datasets/d/shard-00000.tar: SHA-256 is 1, expected 2; the file is damaged"),
        (InputError, "my.yaml: train.step is not a valid key"),
        (UnhealthyError, "mini-S/2: the EMA never changes (ema: 2.6e+05, must be at most 1 rounding error); update it"),
    ],
)
def test_a_job_that_every_try_would_end_alike_is_final_and_names_the_programs_error(
    kind: type[DitError], message: str, api: Api, cluster: Cluster
) -> None:
    end = terminated(kind.exit_code, 1)
    # The log is gone with its container; the pod's status has the end of it.
    end["terminated"]["message"] = f"worker: step 5\ndit: {message} (rank 0)\nW1130 torchrun sends SIGTERM\n"
    api.job, api.logs = job(RUNNING), {"a": "", "b": ""}
    api.pods = [pod(0, uid="a", **container(lastState=end, state={"running": {}})), running_pod(1, "b")]
    with pytest.raises(watch.JobFailed, match=f"{re.escape(message)}.*; the job was deleted") as caught:
        watch.wait(cluster, spec(), "job-1")
    assert caught.value.exit_code == FinalError.exit_code
    assert api.job is None


def test_a_job_that_failed_by_a_lost_pod_is_not_final(api: Api, cluster: Cluster) -> None:
    api.job, api.logs = job(condition("Failed", "backoff limit")), {"a": "waits for the name resolution\n"}
    api.pods = [pod(0, "Failed", uid="a", **container(state=terminated(137, 1)))]
    with pytest.raises(watch.JobFailed, match="exit code 137, SIGKILL; memory") as caught:
        watch.wait(cluster, spec(), "job-1")
    assert caught.value.exit_code == DitError.exit_code
    assert "name resolution" not in str(caught.value)
