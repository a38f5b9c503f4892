"""The table of job kinds: a new one is a row here and a name in `dit.study.cluster`."""

from __future__ import annotations

from dit.study.hashing import digest
from pipelines.cluster.objects import Object
from pipelines.jobs import names
from pipelines.jobs.kind import JobKind, Rendered
from pipelines.jobs.pytorchjob import PyTorchJob
from pipelines.jobs.spec import JobSpec
from pipelines.jobs.trainjob import TrainJob

KINDS: dict[str, JobKind] = {"pytorchjob": PyTorchJob(), "trainjob": TrainJob()}
"""Value of `cluster.job` -> kind."""


def kind_of(spec: JobSpec) -> JobKind:
    """The job kind that `cluster.job` selects."""
    return KINDS[spec.cluster.job]


def render_job(spec: JobSpec) -> Rendered:
    """The manifests of a job, each with a hash of the job's content that does not depend on the pipeline run."""
    kind = kind_of(spec)
    bare = kind.render(spec.without_run())
    rendered = kind.render(spec)
    value = digest([bare.job, [manifest for _, manifest in bare.companions]])
    for manifest in (rendered.job, *(manifest for _, manifest in rendered.companions)):
        manifest["metadata"].setdefault("annotations", {})[names.SPEC_HASH] = value
    return rendered


def spec_hash(manifest: Object) -> str:
    """The hash that `render_job` added; empty if the object has none."""
    return str((manifest["metadata"].get("annotations") or {}).get(names.SPEC_HASH, ""))
