"""Creating and adopting jobs, when something else changes them at the same time."""

from __future__ import annotations

import pytest
from http_fakes import Answer
from job_objects import DENIED, NAME, Api, orphan, spec

from dit.errors import InputError
from pipelines.cluster.client import Cluster
from pipelines.jobs import names
from pipelines.jobs.registry import render_job
from pipelines.jobs.spec import Workflow
from pipelines.jobs.submit import submit


def test_a_webhook_that_does_not_see_the_new_runtime_is_retried(
    api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer's webhook reads from a cache, and denies a job whose runtime is not in it yet."""
    monkeypatch.setattr("pipelines.cluster.retry._FIRST", 0.01)
    unseen: Answer = (403, {"message": f'TrainingRuntime.trainer.kubeflow.org "{NAME}" not found: create it before'})
    created: Answer = (201, {"metadata": {"name": NAME, "uid": "job-3"}})
    api.before["POST", "trainjobs"] = [lambda: unseen, lambda: unseen, lambda: created]
    api.before["PATCH", NAME] = [lambda: (200, {})]
    assert submit(cluster, spec("cluster.job=trainjob")) == "job-3"
    assert api.asked.count(("POST", "trainingruntimes")) == 1
    # Other refusals are not retried.
    api.before["POST", "trainjobs"] = [lambda: DENIED]
    with pytest.raises(InputError, match="RBAC: roles are not known yet; grant it"):
        submit(cluster, spec("cluster.job=trainjob"))


def test_a_job_that_is_deleted_during_its_adoption_is_created_again(api: Api, cluster: Cluster) -> None:
    wanted = spec(workflow=Workflow("kubeflow", "mine", "mine"))
    api.job = orphan("ended")
    api.job["metadata"]["annotations"] |= {
        names.SPEC_HASH: render_job(wanted).job["metadata"]["annotations"][names.SPEC_HASH]
    }

    def gone() -> None:
        api.job = None

    api.before["PATCH", NAME] = [gone]
    assert submit(cluster, wanted) == "job-2"
