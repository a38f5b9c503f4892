"""Why a job's pods do not run, from events, pod status and Kueue's workload. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dit.errors import one_line
from pipelines.cluster.objects import Object, condition, pod_name, pod_phase
from pipelines.cluster.pod_reason import Reason, why_pending
from pipelines.jobs.kind import JobKind, Phase
from pipelines.jobs.snapshot import Snapshot
from pipelines.jobs.spec import JobSpec

# Kueue's reasons that do not go away when other jobs end.
_NO_ROOM_EVER = re.compile(
    r"maximum capacity|unavailable in ClusterQueue|doesn't exist|inactive|not found|didn't match"
)


def explain(spec: JobSpec, kind: JobKind, snapshot: Snapshot) -> Reason | None:
    """The most important reason; None if all pods run or are starting."""
    if snapshot.phase.ended or snapshot.running >= spec.cluster.replicas:
        return None
    if snapshot.phase is Phase.SUSPENDED:
        return _suspended(spec, kind, snapshot)
    reasons = [*_refused_pods(spec, snapshot), *_stuck_pods(snapshot)]
    if not reasons and not snapshot.pods and snapshot.phase is Phase.NEW:
        return Reason(
            f"no controller has taken up {kind.resource.kind} {spec.namespace}/{spec.name}",
            f"check that {kind.controller} runs: kubectl get deployments -A",
            unrecoverable=True,
        )
    # Reasons that waiting does not resolve come first.
    return min(reasons, key=lambda reason: not reason.unrecoverable, default=None)


def _suspended(spec: JobSpec, kind: JobKind, snapshot: Snapshot) -> Reason:
    place = f"{kind.resource.kind} {spec.namespace}/{spec.name}"
    workload = snapshot.workload
    reserved = condition(workload, "QuotaReserved") if workload is not None else None
    if workload is None or reserved is None:
        queue = f"queue {spec.cluster.queue}" if spec.cluster.queue else "someone to resume it"
        return Reason(
            f"{place} is suspended and waits for {queue}",
            f"kubectl describe {kind.resource.plural} -n {spec.namespace} {spec.name}",
        )
    message = one_line(reserved.get("message") or reserved.get("reason") or "")
    unrecoverable = reserved.get("reason") == "Inadmissible" or bool(_NO_ROOM_EVER.search(message))
    remedy = "request less, or another cluster.queue" if unrecoverable else "it starts when quota becomes free"
    return Reason(
        f"{place} waits in queue {spec.cluster.queue}: {message}",
        f"{remedy}; kubectl describe workload -n {spec.namespace} {workload['metadata']['name']}",
        unrecoverable,
    )


def _refused_pods(spec: JobSpec, snapshot: Snapshot) -> Iterator[Reason]:
    """Pods that the API server refused to create."""
    if len(snapshot.pods) >= spec.cluster.replicas:
        return
    for event in _latest_first(snapshot.events):
        subject = event.get("involvedObject", {})
        message = one_line(event.get("message", ""))
        if subject.get("kind") == "Pod" or not str(event.get("reason", "")).startswith("FailedCreate"):
            continue
        place = f"{subject.get('kind')} {spec.namespace}/{subject.get('name')}"
        quota = "exceeded quota" in message
        yield Reason(
            f"{place} cannot create its pods: {message}",
            f"wait, or free quota: kubectl describe quota -n {spec.namespace}" if quota else _remedy(spec, message),
            unrecoverable=not quota,
        )


def _remedy(spec: JobSpec, message: str) -> str:
    if "violates PodSecurity" in message:
        return f"check the namespace's security level: kubectl get ns {spec.namespace} --show-labels"
    if "ValidatingAdmissionPolicy" in message:
        return f"correct the study's cluster section: kubectl describe namespace {spec.namespace}"
    if "service account" in message or "serviceaccount" in message:
        return f"create it, or correct cluster.service_account: kubectl get serviceaccounts -n {spec.namespace}"
    return f"kubectl get events -n {spec.namespace} --field-selector type=Warning"


def _stuck_pods(snapshot: Snapshot) -> Iterator[Reason]:
    """Pods that exist and do not run."""
    events = _latest_first(snapshot.events)
    for pod in sorted(snapshot.pods, key=pod_name):
        own = [event for event in events if event.get("involvedObject", {}).get("name") == pod_name(pod)]
        reason = why_pending(pod, own) if pod_phase(pod) == "Pending" else None
        if reason is not None:
            yield reason


def _latest_first(events: tuple[Object, ...]) -> list[Object]:
    def when(event: Object) -> str:
        return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])

    return sorted((event for event in events if event.get("type") == "Warning"), key=when, reverse=True)
