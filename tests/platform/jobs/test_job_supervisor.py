"""What a launcher makes of a job, its pods and events, as objects of a real cluster look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dit.errors import DataError, DitError, DivergedError, InputError, PeerError, StoreError
from dit.study.study_file import load
from pipelines.jobs.failure_cause import Death, cause_of, own_message, rank_of
from pipelines.jobs.kind import JobKind, Phase
from pipelines.jobs.logs import of_torchrun, split_stamp
from pipelines.jobs.pending_reason import explain
from pipelines.jobs.registry import kind_of
from pipelines.jobs.snapshot import Snapshot, of_this_job
from pipelines.jobs.spec import JobSpec, job_spec
from pipelines.jobs.supervisor import Supervisor

BORN = "2026-01-01T10:00:00Z"
CONFIG = Path(__file__).parents[3] / "configs" / "digits.yaml"
NAME = "dit-digits-mini-s-2"
IMAGE = "registry.example/dit:1"


def spec(*overrides: str) -> JobSpec:
    config = load(CONFIG, ["cluster.replicas=2", "cluster.queue=gpus", *overrides])
    return job_spec(config, "mini-S/2", "train", "s3://bucket/dit", IMAGE)


def condition(kind: str, message: str = "", reason: str = "", status: str = "True") -> dict[str, Any]:
    return {"type": kind, "status": status, "message": message, "reason": reason, "lastTransitionTime": BORN}


def job(*conditions: dict[str, Any], uid: str = "job-1") -> dict[str, Any]:
    metadata = {"name": NAME, "uid": uid, "creationTimestamp": BORN}
    return {"metadata": metadata, "status": {"conditions": list(conditions)}}


def pod(index: int, phase: str = "Running", **status: Any) -> dict[str, Any]:
    metadata = {
        "name": f"{NAME}-worker-{index}",
        "namespace": "dit-scaling",
        "uid": f"pod-{index}",
        "creationTimestamp": BORN,
    }
    return {"metadata": metadata, "status": {"phase": phase, **status}}


def container(**states: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "pytorch", "image": IMAGE, "state": {}, "lastState": {}, **states}]}


def terminated(code: int, second: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": f"2026-01-01T10:05:{second:02}Z"}}


def event(reason: str, message: str, kind: str = "PyTorchJob", name: str = NAME) -> dict[str, Any]:
    subject = {"kind": kind, "name": name}
    return {"type": "Warning", "reason": reason, "message": message, "involvedObject": subject, "lastTimestamp": BORN}


def snapshot(
    manifest: dict[str, Any], pods: Sequence[Any] = (), events: Sequence[Any] = (), workload: Any = None
) -> Snapshot:
    return Snapshot(manifest, kind_of(spec()).phase(manifest), tuple(pods), tuple(events), workload)


def judge(*overrides: str) -> Supervisor:
    return Supervisor(spec(*overrides), kind_of(spec()), "job-1")


CREATED = job(condition("Created"))


def workload(message: str, reason: str = "Pending") -> dict[str, Any]:
    waiting = condition("QuotaReserved", message, reason, status="False")
    return {"metadata": {"name": "pytorchjob-x"}, "status": {"conditions": [waiting]}}


SUSPENDED = job(condition("Suspended", f"PyTorchJob {NAME} is suspended."))
PULL = 'Failed to pull image "registry.example/dit:1": rpc error: code = NotFound desc = not found'
QUOTA = 'Error creating: pods "w" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1'
SECURITY = 'Error creating: pods "w" is forbidden: violates PodSecurity "restricted:latest": seccompProfile'
ACCOUNT = 'Error creating: pods "w" is forbidden: error looking up service account dit/worker: not found'
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
        snapshot(SUSPENDED, workload=workload(FULL)),
        f"waits in queue gpus: {FULL}", "starts by itself", False, id="queue is full",
    ),
    pytest.param(
        snapshot(SUSPENDED, workload=workload(SMALL)),
        "maximum capacity (9 > 8)", "ask for less", True, id="queue is too small",
    ),
    pytest.param(
        snapshot(SUSPENDED, workload=workload("LocalQueue gpus doesn't exist", "Inadmissible")),
        "LocalQueue gpus doesn't exist", "another cluster.queue", True, id="no such queue",
    ),
    pytest.param(snapshot(SUSPENDED), "is suspended and waits for queue gpus", "kubectl", False, id="no workload"),
]  # fmt: skip


@pytest.mark.parametrize(("seen", "text", "remedy", "unrecoverable"), REASONS)
def test_why_nothing_starts(seen: Snapshot, text: str, remedy: str, unrecoverable: bool) -> None:
    reason = explain(spec(), kind_of(spec()), seen)
    assert reason is not None
    assert text in reason.text
    assert remedy in reason.remedy
    assert reason.unrecoverable is unrecoverable


@pytest.mark.parametrize(
    "seen",
    [
        snapshot(CREATED),
        snapshot(CREATED, [pod(0), pod(1, "Pending", **container(state={"waiting": {"reason": "ContainerCreating"}}))]),
        snapshot(job(condition("Running")), [pod(0), pod(1)]),
        snapshot(job(condition("Failed")), [pod(0, "Failed")]),
    ],
)
def test_what_takes_its_time_is_no_reason(seen: Snapshot) -> None:
    assert explain(spec(), kind_of(spec()), seen) is None


def test_what_waiting_cannot_mend_is_named_first() -> None:
    unscheduled = pod(0, "Pending", conditions=[condition("PodScheduled", "no room", status="False")])
    broken = pod(1, "Pending", **container(state={"waiting": {"reason": "InvalidImageName"}}))
    reason = explain(spec(), kind_of(spec()), snapshot(CREATED, [unscheduled, broken]))
    assert reason is not None
    assert "worker-1" in reason.text


UNRECOVERABLE = snapshot(job())
WAITING = snapshot(SUSPENDED, workload=workload("insufficient unused quota"))


def test_the_unrecoverable_is_reported_when_it_lasts_and_given_up_within_two_minutes() -> None:
    watch = judge()
    assert watch.look(UNRECOVERABLE, 100.0).updates == ()
    told = watch.look(UNRECOVERABLE, 110.0)
    assert "no controller has taken up" in told.updates[0]
    assert told.over is None
    assert watch.look(UNRECOVERABLE, 150.0).updates == ()
    last = watch.look(UNRECOVERABLE, 195.0)
    assert (last.over, last.abandoned) == (Phase.FAILED, True)
    assert "cannot start: no controller has taken up" in last.error


def test_what_recovers_in_between_starts_its_time_anew() -> None:
    watch = judge()
    for now, seen in ((0.0, UNRECOVERABLE), (60.0, snapshot(CREATED)), (120.0, UNRECOVERABLE), (200.0, UNRECOVERABLE)):
        assert watch.look(seen, now).over is None
    assert watch.look(UNRECOVERABLE, 211.0).abandoned


LACKING = snapshot(
    job(condition("Running")),
    [pod(0), pod(1, "Pending", **container(state={"waiting": {"reason": "ImagePullBackOff"}}))],
)


def test_a_job_that_has_run_is_not_given_up_for_one_pod_that_cannot() -> None:
    watch = judge("cluster.patience.start=3600")
    watch.look(snapshot(job(condition("Running")), [pod(0), pod(1)]), 0.0)
    seen = {now: watch.look(LACKING, float(now)) for now in range(10, 3610, 10)}
    assert "1 of 2 pods run: pod dit-scaling/dit-digits-mini-s-2-worker-1 cannot pull" in seen[20].updates[0]
    assert not any(verdict.over for verdict in seen.values())
    last = watch.look(LACKING, 3610.0)
    assert (last.over, last.abandoned) == (Phase.FAILED, True)
    assert "did not get all of its pods back within 1h 00m (cluster.patience.start)" in last.error


def test_nor_is_one_that_ran_before_its_launcher_came() -> None:
    held = job(condition("Running", status="False"), condition("Suspended"))
    inactive = snapshot(held, workload=workload("ClusterQueue gpus is inactive", "Inadmissible"))
    for seen in (LACKING, inactive):
        watch = judge()
        assert watch.look(seen, 0.0).over is watch.look(seen, 1000.0).over is None


def test_a_queue_is_waited_for_and_told_now_and_then_until_the_study_says_enough() -> None:
    watch = judge("cluster.patience.start=3600")
    told = [now for now in range(0, 3600, 10) if watch.look(WAITING, float(now)).updates]
    assert told == [10, 610, 1210, 1810, 2410, 3010]
    last = watch.look(WAITING, 3600.0)
    assert last.abandoned
    assert "did not start within 1h 00m (cluster.patience.start)" in last.error


def test_a_job_that_runs_may_take_days() -> None:
    watch = judge()
    running = snapshot(job(condition("Running")), [pod(0), pod(1)])
    assert watch.look(running, 0.0).updates == (f"PyTorchJob dit-scaling/{NAME}: all 2 pods run",)
    assert watch.look(running, 30 * 86400.0) == watch.look(running, 1.0)


def test_success_is_the_controllers_word() -> None:
    assert judge().look(snapshot(job(condition("Succeeded"), condition("Running", status="False"))), 0.0).over is (
        Phase.SUCCEEDED
    )


@pytest.mark.parametrize(
    ("seen", "words"),
    [(Snapshot(None, Phase.NEW), "it was deleted"), (snapshot(job(uid="job-2")), "another of its name")],
)
def test_a_job_that_is_gone_is_a_failure_that_says_so(seen: Snapshot, words: str) -> None:
    verdict = judge().look(seen, 0.0)
    assert (verdict.over, verdict.abandoned) == (Phase.FAILED, False)
    assert words in verdict.error


def test_the_pod_that_ended_first_is_remembered_when_its_pods_are_gone() -> None:
    watch = judge()
    oom = pod(1, **container(lastState=terminated(137, 10, "OOMKilled")))
    peer = pod(0, **container(lastState=terminated(1, 12)))
    told = watch.look(snapshot(job(condition("Running")), [oom, peer]), 0.0).updates
    assert f"{NAME}-worker-1 ended: OOMKilled, exit code 137, SIGKILL" in told
    verdict = watch.look(snapshot(job(condition("Failed", "it has reached the backoff limit"))), 5.0)
    assert "failed: it has reached the backoff limit" in verdict.error
    assert verdict.cause is not None
    assert (verdict.cause.uid, verdict.cause.reason) == ("pod-1", "OOMKilled")


def test_an_evicted_pod_says_so() -> None:
    evicted = pod(0, "Failed", reason="Evicted", message="The node was low on memory.")
    verdict = judge().look(snapshot(job(condition("Failed")), [evicted]), 0.0)
    assert str(verdict.cause) == "Evicted The node was low on memory."


def test_an_earlier_failure_is_not_why_a_job_is_gone() -> None:
    watch = judge()
    watch.look(snapshot(job(condition("Running")), [pod(0, **container(lastState=terminated(137, 10)))]), 0.0)
    assert watch.look(Snapshot(None, Phase.NEW), 5.0).cause is None


def death(name: str, minutes: float, code: int = 1) -> Death:
    return Death(name, f"uid-{name}", datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes), code, "Error")


@pytest.mark.parametrize(
    ("seen", "first"),
    [
        ([], None),
        ([death("a", 5), death("b", 4), death("c", 6)], death("b", 4)),
        ([death("a", 1), death("b", 2), death("a", 8), death("b", 7)], death("b", 7)),
        ([death("c", 0), death("a", 60), death("b", 61)], death("a", 60)),
    ],
    ids=["nothing seen", "one round", "the last of two rounds", "an old loss is another story"],
)
def test_the_first_of_the_last_round(seen: list[Death], first: Death | None) -> None:
    assert cause_of(seen) == first


@pytest.mark.parametrize("code", [PeerError.exit_code, 143], ids=["lost its peers", "told to end"])
def test_a_pod_that_ended_because_of_another_is_not_the_cause_although_it_ended_first(code: int) -> None:
    follower, cause = death("follower", 1.0, code), death("cause", 1.5)
    assert cause_of([follower, cause]) == cause
    assert cause_of([killed := replace(follower, exit_code=137), cause]) == killed
    assert cause_of([follower]) == follower


RESTARTED = job(condition("Running"))


@pytest.mark.parametrize("kind", [DivergedError, DataError, InputError])
def test_what_would_end_alike_is_not_tried_again(kind: type[DitError]) -> None:
    ended = pod(0, **container(state={"running": {}}, lastState=terminated(kind.exit_code, 1)))
    decision = judge().look(snapshot(RESTARTED, [ended, pod(1)]), 0.0)
    assert (decision.over, decision.abandoned) == (Phase.FAILED, True)
    assert decision.cause is not None
    assert decision.cause.uid == "pod-0"


def test_a_trainjob_that_diverged_ends_by_itself_and_keeps_its_pod() -> None:
    kind = kind_of(spec("cluster.job=trainjob"))
    watch = Supervisor(spec(), kind, "job-1")
    running = Snapshot(
        trainjob(jobsStatus=[{"name": "node", "active": 1}]),
        Phase.RUNNING,
        (pod(0, "Failed", **container(state=terminated(DivergedError.exit_code, 1))),),
    )
    assert watch.look(running, 0.0).over is None


def test_a_pod_may_run_out_of_memory_once() -> None:
    watch = judge()
    for second in (1, 2):
        seen = snapshot(RESTARTED, [pod(0, **container(lastState=terminated(1, second, "OOMKilled"))), pod(1)])
        assert (watch.look(seen, float(second)).over is Phase.FAILED) is (second == 2)


@pytest.mark.parametrize("code", [StoreError.exit_code, PeerError.exit_code, 137, 143])
def test_other_ends_are_tried_again(code: int) -> None:
    watch = judge()
    for second in range(1, 9):
        ended = pod(0, **container(lastState=terminated(code, second)))
        assert watch.look(snapshot(RESTARTED, [ended]), 0.0).over is None


def test_logs_tell_the_rank_and_the_programs_own_message() -> None:
    lines = ["  role_ranks=[3]", "  global_ranks=[3]", "dit: loss is not finite at step 12 (rank 3)", "Traceback"]
    assert rank_of(lines) == rank_of(lines[2:3]) == "3"
    assert own_message(lines) == "loss is not finite at step 12 (rank 3)"
    assert rank_of(["nothing"]) is own_message(["nothing"]) is None


def test_time_stamps_of_log_lines_sort_as_times_do() -> None:
    lines = ["2026-01-01T10:00:00Z a", "2026-01-01T10:00:00.12Z b", "2026-01-01T10:00:00.123456789Z c d"]
    stamps = [split_stamp(line)[0] for line in lines]
    assert stamps == sorted(stamps)
    assert split_stamp(lines[2])[1] == "c d"


@pytest.mark.parametrize(
    ("line", "hidden"),
    [
        ("I1125 10:59:28.915000 1 torch/distributed/elastic/agent/server/api.py:553]   global_ranks=[1]", True),
        ("I1125 10:59:28.915000 1 torch/distributed/launcher/api.py:254] ", True),
        ("[W1125 10:59:32.112736095 socket.cpp:207] [c10d] The hostname of the client socket cannot be", True),
        ("[W1125 10:59:32.112736095 socket.cpp:464] [c10d] Timed out", False),
        ("E1125 10:59:28.915000 1 torch/distributed/elastic/multiprocessing/api.py:1010] failed (exitcode: 1)", False),
        ("W1125 10:59:28.915000 1 torch/distributed/elastic/agent/server/api.py:739] Received 15 death signal", False),
        ("train mini-S/2: 1,272/5,200 step (24 %), 32.4 step/s", False),
        ("dit: mini-S/2: step 3: loss is not finite (rank 1)", False),
    ],
)
def test_of_what_torchrun_says_only_trouble_is_printed(line: str, hidden: bool) -> None:
    assert of_torchrun(line) is hidden


def test_what_an_earlier_job_of_the_same_name_left_does_not_count() -> None:
    old = {"metadata": {"creationTimestamp": "2026-01-01T09:00:00Z"}}
    new = {"metadata": {"creationTimestamp": BORN}}
    assert of_this_job(CREATED, [old, new], "creationTimestamp") == (new,)


def trainjob(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": NAME, "uid": "job-1", "creationTimestamp": BORN}, "status": status}


@pytest.mark.parametrize(
    ("manifest", "phase"),
    [
        (trainjob(), Phase.NEW),
        (trainjob(jobsStatus=[{"name": "node", "active": 0}]), Phase.PENDING),
        (trainjob(jobsStatus=[{"name": "node", "active": 1}]), Phase.RUNNING),
        (trainjob(conditions=[condition("Suspended")]), Phase.SUSPENDED),
        (trainjob(conditions=[condition("Complete"), condition("Suspended", status="False")]), Phase.SUCCEEDED),
        (trainjob(conditions=[condition("Failed", reason="FailedJobs")]), Phase.FAILED),
    ],
)
def test_a_trainjob_that_runs_has_no_condition(manifest: dict[str, Any], phase: Phase) -> None:
    kind: JobKind = kind_of(spec("cluster.job=trainjob"))
    assert kind.phase(manifest) is phase
