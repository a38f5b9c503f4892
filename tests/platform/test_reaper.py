"""Which jobs the reaper deletes."""

from __future__ import annotations

from typing import Any

import pytest
from job_objects import NAME, Api
from job_objects import orphan as orphaned_job

from pipelines.cluster.client import Cluster
from pipelines.jobs import names
from pipelines.jobs.registry import KINDS
from pipelines.jobs.spec import Workflow
from pipelines.reaper import has_ended, is_orphan, sweep

PYTORCHJOB, TRAINJOB = KINDS.values()
RUNNING = {"type": "Running", "status": "True"}


def workflow(phase: str = "Running", uid: str = "w-1", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"uid": uid}, "spec": spec, "status": {"phase": phase}}


def job(*workflows: str, condition: dict[str, str] = RUNNING, **metadata: Any) -> dict[str, Any]:
    annotations = {names.WORKFLOWS: " ".join(workflows)} if workflows else {}
    return {"metadata": {"name": "j", "annotations": annotations, **metadata}, "status": {"conditions": [condition]}}


@pytest.mark.parametrize(
    ("result", "ended"),
    [
        (workflow(), False),
        (workflow(""), False),
        (workflow(activeDeadlineSeconds=3600), False),
        (None, True),
        (workflow("Succeeded"), True),
        (workflow("Failed"), True),
        (workflow("Error"), True),
        (workflow(activeDeadlineSeconds=0), True),
        (workflow(shutdown="Terminate"), True),
        (workflow(uid="w-2"), True),
        ({"metadata": {"uid": "w-1", "deletionTimestamp": "2026-01-01T10:00:00Z"}}, True),
    ],
)
def test_when_a_run_has_ended(result: dict[str, Any] | None, ended: bool) -> None:
    assert has_ended(result, "w-1") is ended


def orphan(candidate: dict[str, Any], alive: set[str], kind: Any = PYTORCHJOB) -> bool:
    def find(item: Workflow) -> dict[str, Any] | None:
        return workflow(uid=item.uid) if str(item) in alive else None

    return is_orphan(kind, candidate, find)


def test_a_job_is_an_orphan_when_its_run_has_ended() -> None:
    assert orphan(job("kubeflow/w/w-1"), alive=set())
    assert not orphan(job("kubeflow/w/w-1"), alive={"kubeflow/w/w-1"})
    assert orphan(job("kubeflow/w/w-1"), alive={"other/w/w-1"})


def test_a_job_of_two_runs_is_an_orphan_when_both_have_ended() -> None:
    both = job("kubeflow/a/1", "kubeflow/b/2")
    assert not orphan(both, alive={"kubeflow/b/2"})
    assert orphan(both, alive=set())


@pytest.mark.parametrize(
    "candidate",
    [
        job(),
        {"metadata": {"name": "j"}},
        job("not-a-workflow"),
        job("kubeflow/w/w-1", condition={"type": "Failed", "status": "True"}),
        job("kubeflow/w/w-1", condition={"type": "Succeeded", "status": "True"}),
        job("kubeflow/w/w-1", deletionTimestamp="2026-01-01T10:00:00Z"),
    ],
    ids=["by hand", "no annotations", "strange annotation", "failed", "succeeded", "being deleted"],
)
def test_other_jobs_are_not_orphans(candidate: dict[str, Any]) -> None:
    assert not orphan(candidate, alive=set())


def test_a_trainjob_is_an_orphan_when_its_run_has_ended() -> None:
    running = {"metadata": job("kubeflow/w/w-1")["metadata"], "status": {"jobsStatus": [{"name": "node", "active": 1}]}}
    assert orphan(running, alive=set(), kind=TRAINJOB)


def test_the_reaper_keeps_a_job_that_is_adopted_during_the_sweep(api: Api, cluster: Cluster) -> None:
    api.job, api.alive = orphaned_job("ended"), {"other"}

    def adopted() -> None:
        api.job = orphaned_job("ended", "other", version=2)

    api.before["DELETE", NAME] = [adopted]
    assert list(sweep(cluster)) == []
    assert api.job is not None
    assert ("DELETE", NAME) in api.asked


def test_the_reaper_deletes_a_job_whose_status_changes_during_the_sweep(api: Api, cluster: Cluster) -> None:
    api.job = orphaned_job("ended")

    def changed() -> None:
        api.job = orphaned_job("ended", version=2)

    api.before["DELETE", "pods"] = [changed]
    assert list(sweep(cluster)) == [f"PyTorchJob dit-scaling/{NAME}"]
    assert api.job is None
