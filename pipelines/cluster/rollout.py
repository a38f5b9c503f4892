"""Waits for a deployment, and collects the reasons when its pods do not become ready."""

from __future__ import annotations

import json
import time

from dit.errors import DitError
from pipelines.cluster.kubectl import kubectl
from pipelines.cluster.objects import condition
from pipelines.cluster.pod_reason import Reason, why_unready

TIMEOUT_SECONDS = 420
UNRECOVERABLE_SECONDS = 90
"""Timeout for reasons that waiting does not resolve, like `cluster.patience.hopeless`."""


def wait(name: str, namespace: str) -> None:
    """Return when a deployment is ready.

    Raises DitError with the reason of each pod that is not ready.
    """
    end = time.monotonic() + TIMEOUT_SECONDS
    while True:
        limit = max(1, round(min(UNRECOVERABLE_SECONDS, end - time.monotonic())))
        try:
            # `kubectl wait` would accept the pods of the previous version.
            kubectl("rollout", "status", f"deployment/{name}", "-n", namespace, f"--timeout={limit}s")
            return
        except DitError as error:
            reasons = _reasons(name, namespace)
            stuck = any(reason.unrecoverable for reason in reasons)
            if stuck or "timed out" not in str(error) or time.monotonic() >= end:
                why = "; ".join(map(str, reasons)) or f"{error}; {_describe(name, namespace)}"
                raise DitError(f"deployment {namespace}/{name} is not up: {why}") from None


def _reasons(name: str, namespace: str) -> list[Reason]:
    """Why the deployment is not ready; empty if the cluster cannot be asked."""
    try:
        deployment = json.loads(kubectl("get", "deployment", name, "-n", namespace, "-o", "json"))
        selector = ",".join(f"{key}={value}" for key, value in deployment["spec"]["selector"]["matchLabels"].items())
        pods = json.loads(kubectl("get", "pods", "-n", namespace, "-l", selector, "-o", "json"))["items"]
    except DitError:
        return []
    reasons = [reason for pod in pods if (reason := why_unready(pod))]
    refused = condition(deployment, "ReplicaFailure")
    if refused and not reasons:
        return [Reason(f"no pod was created: {refused.get('message', '')}", _describe(name, namespace))]
    return reasons


def _describe(name: str, namespace: str) -> str:
    return f"kubectl describe deployment -n {namespace} {name}"
