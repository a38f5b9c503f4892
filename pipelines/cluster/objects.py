"""Readers of Kubernetes objects. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]
"""A Kubernetes object, as the API returns it."""


@dataclass(frozen=True)
class Resource:
    """Group, version and names of one kind of object in the API."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """The value of `apiVersion` in manifests."""
        return f"{self.group}/{self.version}"


def condition(obj: Object, kind: str) -> dict[str, Any] | None:
    """The status condition of this type; None if the object does not have it."""
    conditions: list[dict[str, Any]] = obj.get("status", {}).get("conditions") or []
    return next((item for item in conditions if item["type"] == kind), None)


def holds(obj: Object, kind: str) -> bool:
    """Whether the condition of this type is True."""
    status = condition(obj, kind)
    return status is not None and status["status"] == "True"


def pod_name(pod: Object) -> str:
    """Name of a pod."""
    return str(pod["metadata"]["name"])


def pod_phase(pod: Object) -> str:
    """Pending, Running, Succeeded, Failed or Unknown."""
    return str(pod.get("status", {}).get("phase", "Pending"))


def container_statuses(pod: Object) -> list[dict[str, Any]]:
    """Status of each container; empty until the pod is scheduled."""
    statuses: list[dict[str, Any]] = pod.get("status", {}).get("containerStatuses") or []
    return statuses
