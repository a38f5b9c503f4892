"""A job as the Training Operator's PyTorchJob (v1): elastic workers without a master, restarted in place."""

from __future__ import annotations

from kubeflow.training import models as kubeflow

from pipelines.cluster.objects import Object, Resource, holds
from pipelines.jobs import pod_template
from pipelines.jobs.kind import Phase, Rendered, metadata
from pipelines.jobs.spec import GATHER_SECONDS, JobSpec

_PORT = 23456
_CONTAINER = "pytorch"  # the operator requires this name


class PyTorchJob:
    """See JobKind."""

    resource = Resource("kubeflow.org", "v1", "pytorchjobs", "PyTorchJob")
    companion_resources: tuple[Resource, ...] = ()
    controller = "the Training Operator"
    pod_label = "training.kubeflow.org/job-name"
    restarts = True

    def render(self, spec: JobSpec) -> Rendered:
        """See JobKind."""
        cluster = spec.cluster
        job = kubeflow.KubeflowOrgV1PyTorchJob(
            api_version=self.resource.api_version,
            kind=self.resource.kind,
            metadata=metadata(spec),
            spec=kubeflow.KubeflowOrgV1PyTorchJobSpec(
                # By default torchrun counts CPUs if there is no GPU.
                nproc_per_node=str(cluster.processes_per_pod),
                elastic_policy=kubeflow.KubeflowOrgV1ElasticPolicy(
                    rdzv_backend="c10d",
                    rdzv_port=_PORT,
                    rdzv_id=spec.name,
                    # Applies only to pods that have not joined yet; a lost pod is detected by its heartbeat.
                    rdzv_conf=[kubeflow.KubeflowOrgV1RDZVConf(key="join_timeout", value=str(GATHER_SECONDS))],
                    min_replicas=cluster.replicas,
                    max_replicas=cluster.replicas,
                    max_restarts=cluster.max_restarts,
                ),
                pytorch_replica_specs={
                    "Worker": kubeflow.KubeflowOrgV1ReplicaSpec(
                        replicas=cluster.replicas,
                        restart_policy="OnFailure",
                        template=pod_template.template(spec, _CONTAINER),
                    )
                },
                run_policy=kubeflow.KubeflowOrgV1RunPolicy(
                    # One lost pod restarts all pods, and the operator counts restarts per pod.
                    backoff_limit=cluster.backoff_limit * cluster.replicas,
                    clean_pod_policy="Running",
                    ttl_seconds_after_finished=cluster.ttl_seconds,
                    active_deadline_seconds=cluster.deadline_seconds,
                ),
            ),
        )
        return Rendered(pod_template.plain(job))

    def phase(self, job: Object) -> Phase:
        """See JobKind."""
        for condition, phase in (
            ("Succeeded", Phase.SUCCEEDED),
            ("Failed", Phase.FAILED),
            ("Suspended", Phase.SUSPENDED),
            ("Running", Phase.RUNNING),
        ):
            if holds(job, condition):
                return phase
        return Phase.PENDING if job.get("status", {}).get("conditions") else Phase.NEW

    def event_subjects(self, name: str) -> tuple[tuple[str, str], ...]:
        """See JobKind."""
        return ((self.resource.kind, name),)
