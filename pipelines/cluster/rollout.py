"""Whether a deployment comes up, and where it does not, why: in the words of its pods."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from dit.errors import DitError
from pipelines.cluster.kubectl import kubectl
from pipelines.cluster.objects import Object, condition, container_statuses, pod_name

PATIENCE_SECONDS = 420
HOPELESS_SECONDS = 90
"""As `cluster.patience.hopeless`: for what no waiting mends by itself."""

_IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName")
_HOPELESS = (*_IMAGE, "CreateContainerConfigError")


def wait(name: str, namespace: str) -> None:
    """Return when a deployment is up; DitError, with the reason of each pod that is not ready, when it is not."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        look = max(1, round(min(HOPELESS_SECONDS, end - time.monotonic())))
        try:
            kubectl("rollout", "status", f"deployment/{name}", "-n", namespace, f"--timeout={look}s")
            return
        except DitError as error:
            reasons = _reasons(name, namespace)
            hopeless = any(f": {word}" in reason for reason in reasons for word in _HOPELESS)
            if hopeless or "timed out" not in str(error) or time.monotonic() >= end:
                said = "; ".join(reasons) or f"{error}; kubectl describe deployment -n {namespace} {name}"
                raise DitError(f"deployment {namespace}/{name} is not up: {said}") from None


def _reasons(name: str, namespace: str) -> list[str]:
    """Why it is not up; empty where the cluster does not say."""
    try:
        deployment = json.loads(kubectl("get", "deployment", name, "-n", namespace, "-o", "json"))
        selector = ",".join(f"{key}={value}" for key, value in deployment["spec"]["selector"]["matchLabels"].items())
        pods = json.loads(kubectl("get", "pods", "-n", namespace, "-l", selector, "-o", "json"))["items"]
    except DitError:
        return []
    found = [reason for pod in pods if (reason := reason_of(pod))]
    refused = condition(deployment, "ReplicaFailure")
    if refused and not found:
        return [f"no pod is made: {refused.get('message', '')}; kubectl describe deployment -n {namespace} {name}"]
    return found


def reason_of(pod: Object) -> str | None:
    """Why a pod is not ready, and the next command to type; None for one that is ready, or on its way out."""
    ready = condition(pod, "Ready")
    if "deletionTimestamp" in pod["metadata"] or (ready is not None and ready["status"] == "True"):
        return None
    text, command = next(_words(pod))
    return f"pod {pod_name(pod)}{text}; {command}"


def _words(pod: Object) -> Iterator[tuple[str, str]]:
    """(what it is, the command that tells more), the most telling first."""
    at = f"-n {pod['metadata']['namespace']} {pod_name(pod)}"
    describe = f"kubectl describe pod {at}"
    scheduled = condition(pod, "PodScheduled")
    if scheduled is not None and scheduled["status"] == "False":
        yield f" finds no node: {scheduled.get('message', '')}", describe
    if lost := pod["status"].get("reason"):
        yield f": {lost}: {pod['status'].get('message', '')}", describe
    for status in _unready(pod):
        waiting, ended = status["state"].get("waiting") or {}, _end(status)
        logs = f"kubectl logs {at} -c {status['name']}"
        if ended:
            said = "" if ended.get("reason") in (None, "Error") else f", {ended['reason']}"
            again = f"{status.get('restartCount', 0)} restarts"
            yield f" ends with exit code {ended['exitCode']}{said}, {again}", f"{logs} --previous" if waiting else logs
        elif waiting:
            registry = " (docs/cluster.md, Private registries)" if waiting["reason"] in _IMAGE else ""
            yield f": {': '.join(filter(None, (waiting['reason'], waiting.get('message'))))}", f"{describe}{registry}"
        else:
            yield " runs and is not ready", logs
    yield " is not ready", describe


def _unready(pod: Object) -> Iterator[dict[str, Any]]:
    """Containers that are not as they should be; those that run first, first, since the others wait for them."""
    for status in [*(pod["status"].get("initContainerStatuses") or []), *container_statuses(pod)]:
        if not status.get("ready") and "state" in status:
            yield status


def _end(status: Object) -> dict[str, Any] | None:
    """How a container ended that is started again, and again; None for one that has not run yet."""
    state, before = status["state"], (status.get("lastState") or {}).get("terminated")
    ended: dict[str, Any] | None = state.get("terminated")
    return ended or (before if (state.get("waiting") or {}).get("reason") == "CrashLoopBackOff" else None)
