"""Why a pod does not run, from its status and events. Pure."""

from __future__ import annotations

import re
import signal
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
# Kubernetes repeats a message with other numbers: still the same reason.
_CHANGING = re.compile(r"\d+")


@dataclass(frozen=True)
class Reason:
    """Why pods do not run, and what to do about it."""

    text: str
    """The object, and the message of the component that rejects it."""
    remedy: str
    """What to do next, or the command to type."""
    unrecoverable: bool = False
    """True if waiting does not resolve it."""

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}"

    @property
    def same(self) -> str:
        """The text without its numbers: equal for reasons that differ only in counts and times."""
        return _CHANGING.sub("#", self.text)


def killed_by(number: int) -> str:
    """What to say of a process that a signal ended: `was killed by signal 9 (SIGKILL); memory?`."""
    known = f" ({signal.Signals(number).name})" if number in set(signal.Signals) else ""
    # The kernel kills so when memory runs out; others do so rarely.
    return f"was killed by signal {number}{known}" + ("; memory?" if number == signal.SIGKILL else "")


def exit_cause(code: int, reason: str = "") -> str:
    """An exit in words, such as `exit code 137, SIGKILL; memory?`; `reason` is Kubernetes' word for it."""
    number = code - 128
    name = f", {signal.Signals(number).name}" if number in set(signal.Signals) else ""
    known = f"{reason}, " if reason not in ("", "Error") else ""
    return f"{known}exit code {code}{name}" + ("; memory?" if number == signal.SIGKILL and not known else "")


def why_pending(pod: Object, events: Sequence[Object] = ()) -> Reason | None:
    """Why a pod has not started; None while it is starting. `events` are its warnings, latest first."""
    place, describe = _place(pod), _command("describe pod", pod)
    scheduled = condition(pod, "PodScheduled")
    if scheduled is not None and scheduled["status"] == "False":
        message = one_line(scheduled.get("message") or scheduled.get("reason") or "")
        return Reason(f"{place} finds no node: {message}", "it waits for a free node: kubectl describe nodes")
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
            text = f"{place} cannot mount its volume: {one_line(event.get('message', ''))}"
            return Reason(text, describe, unrecoverable=True)
    return None


def why_unready(pod: Object) -> Reason | None:
    """Why a pod is not ready; None if it is ready or being deleted."""
    if "deletionTimestamp" in pod["metadata"] or holds(pod, "Ready"):
        return None
    return why_pending(pod) or next(_unready(pod))


def _unready(pod: Object) -> Iterator[Reason]:
    place, describe = _place(pod), _command("describe pod", pod)
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
            yield Reason(f"{place} runs but is not ready", logs)
    yield Reason(f"{place} is not ready", describe)


def _statuses(pod: Object) -> list[dict[str, Any]]:
    # Init containers first: the others wait for them.
    return [*(pod.get("status", {}).get("initContainerStatuses") or []), *container_statuses(pod)]


def _place(pod: Object) -> str:
    return f"pod {pod['metadata']['namespace']}/{pod_name(pod)}"


def _command(verb: str, pod: Object) -> str:
    return f"kubectl {verb} -n {pod['metadata']['namespace']} {pod_name(pod)}"
