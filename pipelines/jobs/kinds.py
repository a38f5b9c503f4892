"""The interface that every kind of job has, and the two that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Protocol

from dit.study.config import digest
from pipelines.jobs import names
from pipelines.jobs.spec import JobSpec, Workflow

Object = Mapping[str, Any]
"""A Kubernetes object as the API gives it."""


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
class Resource:
    """Where the API keeps objects of one kind."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """As manifests spell it."""
        return f"{self.group}/{self.version}"


@dataclass(frozen=True)
class Rendered:
    """A job, and what must be there before it."""

    job: dict[str, Any]
    companions: tuple[tuple[Resource, dict[str, Any]], ...] = ()


class JobKind(Protocol):
    """A way to run a JobSpec."""

    resource: Resource
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


def kind_of(spec: JobSpec) -> JobKind:
    """The kind that the study chose."""
    return by_name(spec.cluster.job)


def all_kinds() -> tuple[JobKind, ...]:
    """Every kind."""
    return by_name("pytorchjob"), by_name("trainjob")


def by_name(name: Literal["pytorchjob", "trainjob"]) -> JobKind:
    """The kind of this name in study files."""
    # The renderers need this module's types.
    from pipelines.jobs.pytorchjob import PyTorchJob
    from pipelines.jobs.trainjob import TrainJob

    return PyTorchJob() if name == "pytorchjob" else TrainJob()


def render(spec: JobSpec) -> Rendered:
    """The manifests; the job carries a hash of all that makes it what it is, whichever run submits it."""
    kind = kind_of(spec)
    bare = kind.render(spec.without_run())
    rendered = kind.render(spec)
    value = digest([bare.job, [manifest for _, manifest in bare.companions]])
    for manifest in (rendered.job, *(manifest for _, manifest in rendered.companions)):
        manifest["metadata"].setdefault("annotations", {})[names.SPEC_HASH] = value
    return rendered


def spec_hash(manifest: Object) -> str:
    """The hash that `render` left; empty on an object of another origin."""
    return str((manifest["metadata"].get("annotations") or {}).get(names.SPEC_HASH, ""))


def metadata(spec: JobSpec) -> dict[str, Any]:
    """Name, labels and owner of a job."""
    found: dict[str, Any] = {"name": spec.name, "namespace": spec.namespace, "labels": spec.job_labels}
    if spec.workflow is not None:
        found |= ownership([spec.workflow], spec.namespace)
    return found


def ownership(workflows: Sequence[Workflow], namespace: str) -> dict[str, Any]:
    """The part of a job's metadata that says who waits for it."""
    found: dict[str, Any] = {"annotations": {names.WORKFLOWS: " ".join(map(str, workflows))}}
    references = [one.reference for one in workflows if one.namespace == namespace]
    return {**found, "ownerReferences": references} if references else found


def condition(obj: Object, kind: str) -> dict[str, Any] | None:
    """The status condition of this type, whatever its value."""
    conditions: list[dict[str, Any]] = obj.get("status", {}).get("conditions") or []
    return next((one for one in conditions if one["type"] == kind), None)


def holds(obj: Object, kind: str) -> bool:
    """Whether the condition of this type is True."""
    found = condition(obj, kind)
    return found is not None and found["status"] == "True"
