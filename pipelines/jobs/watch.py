"""Waits for a job, for days if necessary: polls it, and prints what has changed."""

from __future__ import annotations

import time
from functools import partial

from dit.console import say
from dit.errors import DitError, FinalError
from pipelines.cluster.client import FORBIDDEN, UNAUTHORIZED, WORKLOADS, ApiRefused, ApiUnavailable, Cluster
from pipelines.cluster.objects import Object, pod_name, pod_phase
from pipelines.cluster.retry import retry
from pipelines.jobs.failure_cause import OUT_OF_MEMORY, own_message, rank_of
from pipelines.jobs.kind import JobKind, Phase
from pipelines.jobs.logs import PodLogs
from pipelines.jobs.registry import kind_of
from pipelines.jobs.snapshot import Snapshot, of_this_job
from pipelines.jobs.spec import JobSpec
from pipelines.jobs.stalls import StallWatch
from pipelines.jobs.supervisor import Decision, Supervisor

POLL_SECONDS = 3.0
_LAST_LINES = 20
# Pending pods of a job usually have the same reason: the events of a few suffice.
_ASKED_PODS = 3


class JobFailed(DitError):
    """The job ended without success, or was given up. Final if its cause is: another job would end the same way."""

    def __init__(self, message: str, is_final: bool = False) -> None:
        super().__init__(message)
        self.exit_code = FinalError.exit_code if is_final else DitError.exit_code


class JobStalled(JobFailed):
    """The job's training did not get on, and the job is over; a new one resumes from the last checkpoint."""


def wait(cluster: Cluster, spec: JobSpec, uid: str, stalls: StallWatch | None = None) -> None:
    """Return when the job's controller reports success. A job that cannot succeed or does not get on is deleted.

    Raises JobStalled when `stalls` finds that ranks do not get on; JobFailed instead if the study has this ended.
    Raises JobFailed with the reason when the job failed.
    Raises ApiUnavailable when the API is down, or refuses calls that it allowed at first, for cluster.patience.api.
    Raises ApiRefused when the API does not allow the first look.
    """
    kind = kind_of(spec)
    logs = PodLogs(cluster, spec.name)
    supervisor = Supervisor(spec, kind, uid)
    try:
        decision = _until_over(cluster, spec, kind, supervisor, logs, stalls)
    finally:
        logs.close()
    if decision.over is Phase.FAILED:
        cause, error = decision.cause, _failure(spec, decision, logs)
        if decision.abandoned:
            retry(lambda: cluster.delete(kind.resource, spec.name, uid), ApiUnavailable, spec.cluster.patience.api)
            error += "; the job was deleted"
        is_final = cause is not None and (decision.abandoned or cause.is_final)
        # Of a TrainJob, the ranks that wait for a frozen one fail first, and the job with them.
        if stalls is not None and not is_final and (decision.stalled or stalls.has_found):
            raise JobFailed(error, is_final=True) if stalls.is_final else JobStalled(error)
        raise JobFailed(error, is_final)


def look(cluster: Cluster, kind: JobKind, spec: JobSpec) -> Snapshot:
    """A snapshot of the job, with events and workload if pods do not run."""
    job = cluster.get(kind.resource, spec.name)
    if job is None:
        return Snapshot(None, Phase.NEW)
    phase = kind.phase(job)
    pods = of_this_job(job, cluster.pods(f"{kind.pod_label}={spec.name}"), "creationTimestamp")
    events: tuple[Object, ...] = ()
    workload = None
    if not phase.ended and Snapshot(job, phase, pods).running < spec.cluster.replicas:
        events = _events(cluster, kind, job, pods)
    # Also for a new job: a missing permission then shows at the first look.
    if phase in (Phase.NEW, Phase.SUSPENDED) and spec.cluster.queue:
        workloads = cluster.find(WORKLOADS, f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}")
        workload = workloads[0] if workloads else None
    return Snapshot(job, phase, pods, events, workload)


def _until_over(
    cluster: Cluster,
    spec: JobSpec,
    kind: JobKind,
    supervisor: Supervisor,
    logs: PodLogs,
    stalls: StallWatch | None,
) -> Decision:
    ask = look
    while True:
        snapshot = retry(partial(ask, cluster, kind, spec), ApiUnavailable, spec.cluster.patience.api)
        ask = _look_again
        logs.follow(snapshot.pods)
        decision = supervisor.look(snapshot, time.monotonic())
        for line in decision.updates:
            say(line)
        if decision.over is not None:
            return decision
        if stalls is not None and (why := stalls.look(snapshot, time.monotonic())):
            return Decision(over=Phase.FAILED, error=f"{supervisor.place}: {why}", abandoned=True, stalled=True)
        time.sleep(POLL_SECONDS)


def _look_again(cluster: Cluster, kind: JobKind, spec: JobSpec) -> Snapshot:
    """`look`, with refusals as outages: an API server that has just started refuses calls until it has loaded RBAC."""
    try:
        return look(cluster, kind, spec)
    except ApiRefused as error:
        if error.status in (UNAUTHORIZED, FORBIDDEN):
            raise ApiUnavailable(f"the cluster's API refuses what it allowed before: {error}") from error
        raise


def _events(cluster: Cluster, kind: JobKind, job: Object, pods: tuple[Object, ...]) -> tuple[Object, ...]:
    subjects = list(kind.event_subjects(job["metadata"]["name"]))
    subjects += [("Pod", pod_name(pod)) for pod in pods if pod_phase(pod) == "Pending"][:_ASKED_PODS]
    events = [event for subject in subjects for event in cluster.events(*subject)]
    return of_this_job(job, events, "lastTimestamp")


def _failure(spec: JobSpec, decision: Decision, logs: PodLogs) -> str:
    """Print the last log lines of the pod that ended first; returns the error in one line."""
    cause = decision.cause
    if cause is None:
        return decision.error
    lines = logs.last_lines(cause.uid)
    for line in lines[-_LAST_LINES:]:
        say(f"{cause.pod}| {line}")
    rank = rank_of(lines)
    where = f"rank {rank}" if rank else "rank unknown: it ended before ranks were assigned"
    message = own_message(lines) or cause.message
    error = f"{decision.error}; the first to end was pod {cause.pod} ({where}), {cause}"
    if cause.reason == OUT_OF_MEMORY:
        return f"{error}; raise cluster.pod.memory ({spec.cluster.pod.memory}) or lower fit.micro_batch"
    if message:
        return f"{error}: {message}"
    return error if decision.abandoned else f"{error}; kubectl logs -n {spec.namespace} {cause.pod}"
