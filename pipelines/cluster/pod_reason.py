"""Why a pod does not run, as the scheduler, the kubelet and its containers report it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dit.errors import one_line
from pipelines.cluster.objects import Object, condition, container_statuses, holds, pod_name

_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_CONTAINER = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_VOLUME = {"FailedMount", "FailedAttachVolume"}
_STARTING = {None, "PodInitializing", "ContainerCreating"}
_RESTARTED = "CrashLoopBackOff"
# Kubernetes repeats a message with changing numbers; it is still the same reason.
_CHANGING = re.compile(r"\d+")


@dataclass(frozen=True)
class Reason:
    """Why pods do not run, and what to do about it."""

    text: str
    """The object, and the message of the component that refuses it."""
    remedy: str
    """The next thing to do, or command to type."""
    unrecoverable: bool = False
    """Whether waiting alone cannot mend it."""

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}"

    @property
    def same(self) -> str:
        """Equal for reasons that differ in counts and times only."""
        return _CHANGING.sub("#", self.text)


def why_pending(pod: Object, events: Sequence[Object] = ()) -> Reason | None:
    """Why a pod has not started; None while it takes its time. `events` are the warnings about it, latest first."""
    place, describe = _place(pod), _describe(pod)
    scheduled = condition(pod, "PodScheduled")
    if scheduled is not None and scheduled["status"] == "False":
        message = one_line(scheduled.get("message") or scheduled.get("reason") or "")
        return Reason(f"{place} finds no node: {message}", "it waits for room: kubectl describe nodes")
    for status in _statuses(pod):
        waiting = status.get("state", {}).get("waiting") or {}
        cause, message = waiting.get("reason"), one_line(waiting.get("message") or "")
        if cause in _IMAGE:
            pulls = (one_line(event.get("message", "")) for event in events)
            pull = next((text for text in pulls if "Failed to pull image" in text), message)
            return Reason(
                f"{place} cannot pull {status.get('image') or 'its image'}: {pull or cause}",
                "push the image, or correct its name or pull secret (docs/cluster.md, Private registries)",
                unrecoverable=True,
            )
        if cause in _CONTAINER:
            namespace = pod["metadata"]["namespace"]
            remedy = f"kubectl get secrets -n {namespace}; {describe}" if "secret" in message.lower() else describe
            return Reason(f"{place} cannot start its container: {message or cause}", remedy, unrecoverable=True)
        if cause not in _STARTING | {_RESTARTED}:
            return Reason(f"{place} does not start: {': '.join(filter(None, (cause, message)))}", describe)
    for event in events:
        if event.get("reason") in _VOLUME:
            text = f"{place} gets no volume: {one_line(event.get('message', ''))}"
            return Reason(text, describe, unrecoverable=True)
    return None


def why_unready(pod: Object) -> Reason | None:
    """Why a pod is not ready; None for one that is ready or is being deleted."""
    if "deletionTimestamp" in pod["metadata"] or holds(pod, "Ready"):
        return None
    return why_pending(pod) or next(_unready(pod))


def _unready(pod: Object) -> Iterator[Reason]:
    place, describe = _place(pod), _describe(pod)
    if lost := pod["status"].get("reason"):
        yield Reason(f"{place}: {lost}: {one_line(pod['status'].get('message', ''))}", describe)
    for status in _statuses(pod):
        if status.get("ready") or "state" not in status:
            continue
        waiting, logs = status["state"].get("waiting") or {}, f"{_command('logs', pod)} -c {status['name']}"
        ended = status["state"].get("terminated")
        if waiting.get("reason") == _RESTARTED:
            ended, logs = (status.get("lastState") or {}).get("terminated"), f"{logs} --previous"
        if ended:
            cause = "" if ended.get("reason") in (None, "Error") else f", {ended['reason']}"
            restarts = f"{status.get('restartCount', 0)} restarts"
            yield Reason(f"{place} ends with exit code {ended['exitCode']}{cause}, {restarts}", logs)
        elif waiting:
            yield Reason(f"{place} does not start: {waiting['reason']}", describe)
        else:
            yield Reason(f"{place} runs and is not ready", logs)
    yield Reason(f"{place} is not ready", describe)


def _statuses(pod: Object) -> list[dict[str, Any]]:
    """Those of init containers first, since the others wait for them."""
    return [*(pod.get("status", {}).get("initContainerStatuses") or []), *container_statuses(pod)]


def _place(pod: Object) -> str:
    return f"pod {pod['metadata']['namespace']}/{pod_name(pod)}"


def _describe(pod: Object) -> str:
    return _command("describe pod", pod)


def _command(verb: str, pod: Object) -> str:
    return f"kubectl {verb} -n {pod['metadata']['namespace']} {pod_name(pod)}"
