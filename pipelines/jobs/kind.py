"""The interface of a kind of job, and what their manifests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from pipelines.cluster.objects import Object, Resource
from pipelines.jobs import names
from pipelines.jobs.spec import JobSpec, Workflow


class Phase(Enum):
    """How far a job is, as its controller says."""

    NEW = "not taken up by its controller"
    PENDING = "pending"
    SUSPENDED = "suspended"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether it stays so."""
        return self in (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True)
class Rendered:
    """A job, and what must be there before it."""

    job: dict[str, Any]
    companions: tuple[tuple[Resource, dict[str, Any]], ...] = ()


class JobKind(Protocol):
    """A way to run a JobSpec."""

    resource: Resource
    companion_resources: tuple[Resource, ...]
    """Kinds of objects that `render` puts beside a job."""
    controller: str
    """Who runs such jobs, for people."""
    pod_label: str
    """Label that all pods of a job carry, with the job's name as its value."""
    restarts: bool
    """Whether pods that failed are tried again, so that a job which cannot go on does not end by itself."""

    def render(self, spec: JobSpec) -> Rendered:
        """The manifests, without a spec hash."""

    def phase(self, job: Object) -> Phase:
        """What the job's status says."""

    def event_subjects(self, name: str) -> tuple[tuple[str, str], ...]:
        """(kind, name) of the objects on whose events the controllers say why there are no pods."""


def metadata(spec: JobSpec) -> dict[str, Any]:
    """Name, labels and owner of a job."""
    fields: dict[str, Any] = {"name": spec.name, "namespace": spec.namespace, "labels": spec.job_labels}
    if spec.workflow is not None:
        fields |= ownership([spec.workflow], spec.namespace)
    return fields


def ownership(workflows: Sequence[Workflow], namespace: str) -> dict[str, Any]:
    """The part of a job's metadata that says who waits for it."""
    fields: dict[str, Any] = {"annotations": {names.WORKFLOWS: " ".join(map(str, workflows))}}
    references = [workflow.reference for workflow in workflows if workflow.namespace == namespace]
    return {**fields, "ownerReferences": references} if references else fields
