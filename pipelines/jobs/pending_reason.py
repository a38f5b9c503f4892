"""Why a job's pods do not all run: from what the controllers, the scheduler, the kubelet and Kueue say. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.cluster.objects import Object, condition, container_statuses, pod_name, pod_phase
from pipelines.jobs.kind import JobKind, Phase
from pipelines.jobs.snapshot import Snapshot
from pipelines.jobs.spec import JobSpec

_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_CONTAINER = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_VOLUME = {"FailedMount", "FailedAttachVolume"}
# Of Kueue's reasons to wait, those that no other job's end removes.
_NO_ROOM_EVER = re.compile(
    r"maximum capacity|unavailable in ClusterQueue|doesn't exist|inactive|not found|didn't match"
)
# Kubernetes repeats a message with changing numbers; it is still the same reason.
_CHANGING = re.compile(r"\d+")


@dataclass(frozen=True)
class Reason:
    """Why pods do not run, and what to do about it."""

    text: str
    """The thing, the place, and the words of whoever refused it."""
    remedy: str
    """The next thing to do, or command to type."""
    hopeless: bool
    """Whether waiting alone cannot mend it."""

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}"

    @property
    def same(self) -> str:
        """Equal for reasons that differ in counts and times only."""
        return _CHANGING.sub("#", self.text)


def explain(spec: JobSpec, kind: JobKind, snapshot: Snapshot) -> Reason | None:
    """The most telling reason; None while there is none but that things take their time."""
    if snapshot.phase.ended or snapshot.running >= spec.cluster.replicas:
        return None
    if snapshot.phase is Phase.SUSPENDED:
        return _suspended(spec, kind, snapshot)
    reasons = [*_refused_pods(spec, snapshot), *_stuck_pods(spec, snapshot)]
    if not reasons and not snapshot.pods and snapshot.phase is Phase.NEW:
        return Reason(
            f"no controller has taken up {kind.resource.kind} {spec.namespace}/{spec.name}",
            f"see that {kind.controller} runs: kubectl get deployments -A",
            hopeless=True,
        )
    # What waiting cannot mend is worth more than what it can.
    return min(reasons, key=lambda reason: not reason.hopeless, default=None)


def _suspended(spec: JobSpec, kind: JobKind, snapshot: Snapshot) -> Reason:
    place = f"{kind.resource.kind} {spec.namespace}/{spec.name}"
    workload = snapshot.workload
    reserved = condition(workload, "QuotaReserved") if workload is not None else None
    if workload is None or reserved is None:
        queue = f"queue {spec.cluster.queue}" if spec.cluster.queue else "whoever suspended it"
        return Reason(
            f"{place} is suspended and waits for {queue}",
            f"see why: kubectl describe {kind.resource.plural} -n {spec.namespace} {spec.name}",
            hopeless=False,
        )
    message = _one_line(reserved.get("message") or reserved.get("reason") or "")
    hopeless = reserved.get("reason") == "Inadmissible" or bool(_NO_ROOM_EVER.search(message))
    remedy = "ask for less, or for another cluster.queue" if hopeless else "it starts by itself when quota becomes free"
    return Reason(
        f"{place} waits in queue {spec.cluster.queue}: {message}",
        f"{remedy}; kubectl describe workload -n {spec.namespace} {workload['metadata']['name']}",
        hopeless,
    )


def _refused_pods(spec: JobSpec, snapshot: Snapshot) -> Iterator[Reason]:
    """Pods that the API server would not have."""
    if len(snapshot.pods) >= spec.cluster.replicas:
        return
    for event in _latest_first(snapshot.events):
        subject = event.get("involvedObject", {})
        message = _one_line(event.get("message", ""))
        if subject.get("kind") == "Pod" or not str(event.get("reason", "")).startswith("FailedCreate"):
            continue
        place = f"{subject.get('kind')} {spec.namespace}/{subject.get('name')}"
        quota = "exceeded quota" in message
        yield Reason(
            f"{place} cannot create its pods: {message}",
            f"wait, or free quota: kubectl describe quota -n {spec.namespace}" if quota else _remedy(spec, message),
            hopeless=not quota,
        )


def _remedy(spec: JobSpec, message: str) -> str:
    if "violates PodSecurity" in message:
        return f"see what the namespace enforces: kubectl get ns {spec.namespace} --show-labels"
    if "service account" in message or "serviceaccount" in message:
        return f"make it, or correct cluster.service_account: kubectl get serviceaccounts -n {spec.namespace}"
    return f"kubectl get events -n {spec.namespace} --field-selector type=Warning"


def _stuck_pods(spec: JobSpec, snapshot: Snapshot) -> Iterator[Reason]:
    """Pods that exist and do not run."""
    for pod in sorted(snapshot.pods, key=pod_name):
        if pod_phase(pod) != "Pending":
            continue
        name = pod_name(pod)
        place = f"pod {spec.namespace}/{name}"
        yield from _unscheduled(pod, place)
        for status in container_statuses(pod):
            yield from _waiting(spec, snapshot, status, name)
        for event in _events_of(snapshot, name):
            if event.get("reason") in _VOLUME:
                message = _one_line(event.get("message", ""))
                describe = f"kubectl describe pod -n {spec.namespace} {name}"
                yield Reason(f"{place} gets no volume: {message}", describe, hopeless=True)


def _unscheduled(pod: Object, place: str) -> Iterator[Reason]:
    scheduled = condition(pod, "PodScheduled")
    if scheduled is not None and scheduled["status"] == "False":
        message = _one_line(scheduled.get("message") or scheduled.get("reason") or "")
        yield Reason(
            f"{place} finds no node: {message}",
            "it waits for room; see what nodes offer and hold: kubectl describe nodes",
            hopeless=False,
        )


def _waiting(spec: JobSpec, snapshot: Snapshot, status: dict[str, Any], name: str) -> Iterator[Reason]:
    waiting = status.get("state", {}).get("waiting") or {}
    reason, place = waiting.get("reason"), f"pod {spec.namespace}/{name}"
    message = _one_line(waiting.get("message") or "")
    if reason in _IMAGE:
        pulls = [_one_line(event.get("message", "")) for event in _events_of(snapshot, name)]
        told = next((pull for pull in pulls if "Failed to pull image" in pull), message)
        remedy = "push the image, or correct its name or cluster.image_pull_secrets"
        yield Reason(f"{place} cannot pull {spec.image}: {told or reason}", remedy, hopeless=True)
    elif reason in _CONTAINER:
        remedy = f"see which there are: kubectl get secrets -n {spec.namespace}"
        if "secret" not in message:
            remedy = f"kubectl describe pod -n {spec.namespace} {name}"
        yield Reason(f"{place} cannot start its container: {message or reason}", remedy, hopeless=True)


def _events_of(snapshot: Snapshot, pod: str) -> list[Object]:
    return [event for event in _latest_first(snapshot.events) if event.get("involvedObject", {}).get("name") == pod]


def _latest_first(events: tuple[Object, ...]) -> list[Object]:
    def when(event: Object) -> str:
        return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])

    return sorted((event for event in events if event.get("type") == "Warning"), key=when, reverse=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())
