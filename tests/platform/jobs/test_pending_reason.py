"""Why the pods of a job do not run, and what the user can do about it."""

from __future__ import annotations

import pytest
from job_objects import CREATED, NAME, SUSPENDED, condition, container, event, job, pod, snapshot, spec, workload

from pipelines.jobs.pending_reason import explain
from pipelines.jobs.registry import kind_of
from pipelines.jobs.snapshot import Snapshot

PULL = 'Failed to pull image "registry.example/dit:1": rpc error: code = NotFound desc = not found'
QUOTA = 'Error creating: pods "w" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1'
SECURITY = 'Error creating: pods "w" is forbidden: violates PodSecurity "restricted:latest": seccompProfile'
ACCOUNT = 'Error creating: pods "w" is forbidden: error looking up service account dit/worker: not found'
POLICY = """Error creating: pods "w" is forbidden: ValidatingAdmissionPolicy 'p' denied request: account a is wrong"""
FULL = "couldn't assign flavors to pod set worker: insufficient unused quota for nvidia.com/gpu, 8 more needed"
SMALL = "couldn't assign flavors to pod set worker: insufficient quota, request > maximum capacity (9 > 8)"
REASONS = [
    pytest.param(snapshot(job()), "no controller has taken up", "Training Operator", True, id="no operator"),
    pytest.param(
        snapshot(CREATED, [pod(0), pod(1, "Pending", **container(state={"waiting": {"reason": "ErrImagePull"}}))], [
            event("Failed", PULL, "Pod", f"{NAME}-worker-1")
        ]),
        f"worker-1 cannot pull registry.example/dit:1: {PULL}", "push the image", True, id="image",
    ),
    pytest.param(
        snapshot(CREATED, [pod(0, "Pending", **container(
            state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "dit-s3" not found'}}
        ))]),
        'secret "dit-s3" not found', "kubectl get secrets -n dit-scaling", True, id="secret",
    ),
    pytest.param(
        snapshot(CREATED, [pod(0), pod(1, "Pending", conditions=[
            condition("PodScheduled", "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", status="False")
        ])]),
        "finds no node: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", "describe nodes", False,
        id="unschedulable",
    ),
    pytest.param(
        snapshot(CREATED, events=[event("FailedCreatePod", QUOTA)]), QUOTA, "describe quota", False, id="quota"
    ),
    pytest.param(
        snapshot(CREATED, events=[event("FailedCreatePod", SECURITY)]), SECURITY, "show-labels", True, id="pod security"
    ),
    pytest.param(
        snapshot(CREATED, events=[event("FailedCreatePod", ACCOUNT)]),
        ACCOUNT, "get serviceaccounts", True, id="service account",
    ),
    pytest.param(
        snapshot(CREATED, events=[event("FailedCreatePod", POLICY)]),
        POLICY, "kubectl describe namespace", True, id="admission policy",
    ),
    pytest.param(
        snapshot(SUSPENDED, workload=workload(FULL)),
        f"waits in queue gpus: {FULL}", "when quota becomes free", False, id="queue is full",
    ),
    pytest.param(
        snapshot(SUSPENDED, workload=workload(SMALL)),
        "maximum capacity (9 > 8)", "request less", True, id="queue is too small",
    ),
    pytest.param(
        snapshot(SUSPENDED, workload=workload("LocalQueue gpus doesn't exist", "Inadmissible")),
        "LocalQueue gpus doesn't exist", "another cluster.queue", True, id="no such queue",
    ),
    pytest.param(snapshot(SUSPENDED), "is suspended and waits for queue gpus", "kubectl", False, id="no workload"),
]  # fmt: skip


@pytest.mark.parametrize(("observed", "text", "remedy", "unrecoverable"), REASONS)
def test_a_reason_names_the_object_the_message_and_the_remedy(
    observed: Snapshot, text: str, remedy: str, unrecoverable: bool
) -> None:
    reason = explain(spec(), kind_of(spec()), observed)
    assert reason is not None
    assert text in reason.text
    assert remedy in reason.remedy
    assert reason.unrecoverable is unrecoverable


@pytest.mark.parametrize(
    "observed",
    [
        snapshot(CREATED),
        snapshot(CREATED, [pod(0), pod(1, "Pending", **container(state={"waiting": {"reason": "ContainerCreating"}}))]),
        snapshot(job(condition("Running")), [pod(0), pod(1)]),
        snapshot(job(condition("Failed")), [pod(0, "Failed")]),
    ],
)
def test_starting_pods_and_ended_jobs_have_no_reason(observed: Snapshot) -> None:
    assert explain(spec(), kind_of(spec()), observed) is None


def test_an_unrecoverable_reason_comes_first() -> None:
    unscheduled = pod(0, "Pending", conditions=[condition("PodScheduled", "no room", status="False")])
    broken = pod(1, "Pending", **container(state={"waiting": {"reason": "InvalidImageName"}}))
    reason = explain(spec(), kind_of(spec()), snapshot(CREATED, [unscheduled, broken]))
    assert reason is not None
    assert "worker-1" in reason.text
