"""How long a launcher waits for a job, what it reports meanwhile, and which failures end the wait."""

from __future__ import annotations

import pytest
from job_objects import (
    CREATED,
    NAME,
    SUSPENDED,
    condition,
    container,
    job,
    pod,
    snapshot,
    spec,
    terminated,
    trainjob,
    workload,
)

from dit.errors import DataError, DitError, DivergedError, InputError, PeerError, StoreError
from pipelines.jobs.kind import Phase
from pipelines.jobs.registry import kind_of
from pipelines.jobs.snapshot import Snapshot
from pipelines.jobs.supervisor import Supervisor


def supervisor(*overrides: str) -> Supervisor:
    return Supervisor(spec(*overrides), kind_of(spec()), "job-1")


UNRECOVERABLE = snapshot(job())
WAITING = snapshot(SUSPENDED, workload=workload("insufficient unused quota"))


def test_an_unrecoverable_job_is_reported_after_10_s_and_given_up_after_90_s() -> None:
    watch = supervisor()
    assert watch.look(UNRECOVERABLE, 100.0).updates == ()
    printed = watch.look(UNRECOVERABLE, 110.0)
    assert "no controller has taken up" in printed.updates[0]
    assert printed.over is None
    assert watch.look(UNRECOVERABLE, 150.0).updates == ()
    last = watch.look(UNRECOVERABLE, 195.0)
    assert (last.over, last.abandoned) == (Phase.FAILED, True)
    assert "cannot start: no controller has taken up" in last.error


def test_a_recovery_restarts_the_timeout_of_an_unrecoverable_job() -> None:
    watch = supervisor()
    for now, observed in (
        (0.0, UNRECOVERABLE),
        (60.0, snapshot(CREATED)),
        (120.0, UNRECOVERABLE),
        (200.0, UNRECOVERABLE),
    ):
        assert watch.look(observed, now).over is None
    assert watch.look(UNRECOVERABLE, 211.0).abandoned


LACKING = snapshot(
    job(condition("Running")),
    [pod(0), pod(1, "Pending", **container(state={"waiting": {"reason": "ImagePullBackOff"}}))],
)


def test_a_job_that_has_run_waits_for_a_pod_that_cannot_restart() -> None:
    watch = supervisor("cluster.patience.start=3600")
    watch.look(snapshot(job(condition("Running")), [pod(0), pod(1)]), 0.0)
    observed = {now: watch.look(LACKING, float(now)) for now in range(10, 3610, 10)}
    assert "1 of 2 pods run: pod dit-scaling/dit-digits-mini-s-2-worker-1 cannot pull" in observed[20].updates[0]
    assert not any(verdict.over for verdict in observed.values())
    last = watch.look(LACKING, 3610.0)
    assert (last.over, last.abandoned) == (Phase.FAILED, True)
    assert "did not get all of its pods back within 1h 00m (cluster.patience.start)" in last.error


def test_an_adopted_job_that_has_run_waits_for_a_pod_that_cannot_restart() -> None:
    held = job(condition("Running", status="False"), condition("Suspended"))
    inactive = snapshot(held, workload=workload("ClusterQueue gpus is inactive", "Inadmissible"))
    for observed in (LACKING, inactive):
        watch = supervisor()
        assert watch.look(observed, 0.0).over is watch.look(observed, 1000.0).over is None


def test_a_wait_in_the_queue_is_reported_every_10_minutes_until_the_timeout() -> None:
    watch = supervisor("cluster.patience.start=3600")
    printed = [now for now in range(0, 3600, 10) if watch.look(WAITING, float(now)).updates]
    assert printed == [10, 610, 1210, 1810, 2410, 3010]
    last = watch.look(WAITING, 3600.0)
    assert last.abandoned
    assert "did not start within 1h 00m (cluster.patience.start)" in last.error


def test_a_job_that_runs_may_take_days() -> None:
    watch = supervisor()
    running = snapshot(job(condition("Running")), [pod(0), pod(1)])
    assert watch.look(running, 0.0).updates == (f"PyTorchJob dit-scaling/{NAME}: all 2 pods run",)
    assert watch.look(running, 30 * 86400.0) == watch.look(running, 1.0)


def test_a_job_succeeds_when_its_controller_reports_success() -> None:
    assert supervisor().look(snapshot(job(condition("Succeeded"), condition("Running", status="False"))), 0.0).over is (
        Phase.SUCCEEDED
    )


@pytest.mark.parametrize(
    ("observed", "expected"),
    [(Snapshot(None, Phase.NEW), "it was deleted"), (snapshot(job(uid="job-2")), "another job has its name")],
)
def test_a_deleted_or_replaced_job_is_a_failure(observed: Snapshot, expected: str) -> None:
    verdict = supervisor().look(observed, 0.0)
    assert (verdict.over, verdict.abandoned) == (Phase.FAILED, False)
    assert expected in verdict.error


def test_the_cause_of_a_failure_is_kept_after_the_pods_are_gone() -> None:
    watch = supervisor()
    oom = pod(1, **container(lastState=terminated(137, 10, "OOMKilled")))
    peer = pod(0, **container(lastState=terminated(1, 12)))
    printed = watch.look(snapshot(job(condition("Running")), [oom, peer]), 0.0).updates
    assert f"{NAME}-worker-1 ended: OOMKilled, exit code 137, SIGKILL" in printed
    verdict = watch.look(snapshot(job(condition("Failed", "it has reached the backoff limit"))), 5.0)
    assert "failed: it has reached the backoff limit" in verdict.error
    assert verdict.cause is not None
    assert (verdict.cause.uid, verdict.cause.reason) == ("pod-1", "OOMKilled")


def test_the_eviction_of_a_pod_is_the_cause_of_the_failure() -> None:
    evicted = pod(0, "Failed", reason="Evicted", message="The node was low on memory.")
    verdict = supervisor().look(snapshot(job(condition("Failed")), [evicted]), 0.0)
    assert str(verdict.cause) == "Evicted The node was low on memory."


def test_an_earlier_failure_is_not_the_cause_of_a_deletion() -> None:
    watch = supervisor()
    watch.look(snapshot(job(condition("Running")), [pod(0, **container(lastState=terminated(137, 10)))]), 0.0)
    assert watch.look(Snapshot(None, Phase.NEW), 5.0).cause is None


RESTARTED = job(condition("Running"))


@pytest.mark.parametrize("kind", [DivergedError, DataError, InputError])
def test_a_final_exit_code_is_not_retried(kind: type[DitError]) -> None:
    ended = pod(0, **container(state={"running": {}}, lastState=terminated(kind.exit_code, 1)))
    decision = supervisor().look(snapshot(RESTARTED, [ended, pod(1)]), 0.0)
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


def test_only_the_first_out_of_memory_of_a_pod_is_retried() -> None:
    watch = supervisor()
    for second in (1, 2):
        observed = snapshot(RESTARTED, [pod(0, **container(lastState=terminated(1, second, "OOMKilled"))), pod(1)])
        assert (watch.look(observed, float(second)).over is Phase.FAILED) is (second == 2)


@pytest.mark.parametrize("code", [StoreError.exit_code, PeerError.exit_code, 137, 143])
def test_other_exit_codes_are_retried(code: int) -> None:
    watch = supervisor()
    for second in range(1, 9):
        ended = pod(0, **container(lastState=terminated(code, second)))
        assert watch.look(snapshot(RESTARTED, [ended]), 0.0).over is None
