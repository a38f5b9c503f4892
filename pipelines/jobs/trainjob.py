"""A job as Trainer v2's TrainJob, with its own TrainingRuntime.

Trainer's default runtime restarts a failing pod for minutes, then deletes it with its log. This runtime fails at once
and keeps the failed pod; the launcher's retry resumes from the last checkpoint.
"""

from __future__ import annotations

from typing import Any

from pipelines.cluster.objects import Object, Resource, holds
from pipelines.jobs import pod_template
from pipelines.jobs.kind import Phase, Rendered, metadata
from pipelines.jobs.spec import GATHER_SECONDS, JobSpec

RUNTIME = Resource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes", "TrainingRuntime")
_NODE = "node"  # Trainer requires this name for the replicated job and its container


class TrainJob:
    """See JobKind."""

    resource = Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob")
    companion_resources: tuple[Resource, ...] = (RUNTIME,)
    controller = "Kubeflow Trainer"
    pod_label = "jobset.sigs.k8s.io/jobset-name"
    restarts = False

    def render(self, spec: JobSpec) -> Rendered:
        """See JobKind."""
        cluster = spec.cluster
        deadline = {"activeDeadlineSeconds": cluster.deadline_seconds} if cluster.deadline_seconds else {}
        job = {
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "metadata": metadata(spec),
            "spec": {
                "runtimeRef": {"apiGroup": RUNTIME.group, "kind": RUNTIME.kind, "name": spec.name},
                "trainer": {"numNodes": cluster.replicas, "numProcPerNode": cluster.processes_per_pod},
                **deadline,
            },
        }
        return Rendered(job, ((RUNTIME, _runtime(spec)),))

    def phase(self, job: Object) -> Phase:
        """See JobKind."""
        for condition, phase in (
            ("Complete", Phase.SUCCEEDED),
            ("Failed", Phase.FAILED),
            ("Suspended", Phase.SUSPENDED),
        ):
            if holds(job, condition):
                return phase
        # A running TrainJob has no condition.
        children: list[dict[str, Any]] = job.get("status", {}).get("jobsStatus") or []
        if any(child.get("active") for child in children):
            return Phase.RUNNING
        return Phase.PENDING if children else Phase.NEW

    def event_subjects(self, name: str) -> tuple[tuple[str, str], ...]:
        """See JobKind."""
        return ((self.resource.kind, name), ("JobSet", name), ("Job", f"{name}-{_NODE}-0"))


def _runtime(spec: JobSpec) -> dict[str, Any]:
    template = pod_template.plain(pod_template.template(spec, _NODE, restart_policy="Never"))
    # By default torchrun waits only 15 minutes for the other pods, and its exit would fail the job.
    template["spec"]["containers"][0]["env"].append({"name": "PET_RDZV_CONF", "value": f"timeout={GATHER_SECONDS}"})
    node = {
        "name": _NODE,
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"backoffLimit": 0, "template": template},
        },
    }
    return {
        "apiVersion": RUNTIME.api_version,
        "kind": RUNTIME.kind,
        "metadata": {"name": spec.name, "namespace": spec.namespace, "labels": spec.labels},
        "spec": {
            "mlPolicy": {"numNodes": spec.cluster.replicas, "torch": {}},
            "template": {"spec": {"failurePolicy": {"maxRestarts": 0}, "replicatedJobs": [node]}},
        },
    }
