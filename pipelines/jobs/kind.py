"""The interface of a job kind, and the metadata that all kinds share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from pipelines.cluster.objects import Object, Resource
from pipelines.jobs import names
from pipelines.jobs.spec import JobSpec, Workflow


class Phase(Enum):
    """State of a job, from the status that its controller writes."""

    NEW = "not taken up by its controller"
    PENDING = "pending"
    SUSPENDED = "suspended"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """True for a state that does not change any more."""
        return self in (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True)
class Rendered:
    """A job, and the objects that must exist before it."""

    job: dict[str, Any]
    companions: tuple[tuple[Resource, dict[str, Any]], ...] = ()


class JobKind(Protocol):
    """A way to run a JobSpec."""

    resource: Resource
    companion_resources: tuple[Resource, ...]
    """Kinds of the companion objects that `render` returns."""
    controller: str
    """Name of the controller in messages."""
    pod_label: str
    """Label of all pods of a job; its value is the job's name."""
    restarts: bool
    """True if the controller restarts failed pods, so that a job which cannot succeed does not end by itself."""

    def render(self, spec: JobSpec) -> Rendered:
        """The manifests of a job, without the spec hash."""

    def phase(self, job: Object) -> Phase:
        """The phase in the job's status."""

    def event_subjects(self, name: str) -> tuple[tuple[str, str], ...]:
        """(kind, name) of the objects whose events explain missing pods."""


def metadata(spec: JobSpec) -> dict[str, Any]:
    """Name, labels and owner of a job."""
    fields: dict[str, Any] = {"name": spec.name, "namespace": spec.namespace, "labels": spec.job_labels}
    if spec.workflow is not None:
        fields |= ownership([spec.workflow], spec.namespace)
    return fields


def ownership(workflows: Sequence[Workflow], namespace: str) -> dict[str, Any]:
    """Annotations and owner references of a job: the workflows that wait for it."""
    fields: dict[str, Any] = {"annotations": {names.WORKFLOWS: " ".join(map(str, workflows))}}
    references = [workflow.reference for workflow in workflows if workflow.namespace == namespace]
    return {**fields, "ownerReferences": references} if references else fields
