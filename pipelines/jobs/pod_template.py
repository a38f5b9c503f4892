"""The pod of every job kind; it meets the Pod Security standard `restricted`."""

from __future__ import annotations

import math
from typing import Any

from kubernetes import client as k8s

from dit.storage.lease import JOB
from dit.study.cluster import PRODUCT_LABEL, quantity
from pipelines.jobs import names
from pipelines.jobs.spec import STUDY_PATH, JobSpec

_SCRATCH = "/tmp"
_LAST_SECONDS = 5
"""Part of the grace period that torchrun itself keeps, after its processes have ended."""


def template(spec: JobSpec, container: str, restart_policy: str | None = None) -> k8s.V1PodTemplateSpec:
    """The pod template of a job; `container` is the container name that the job's controller expects."""
    cluster = spec.cluster
    return k8s.V1PodTemplateSpec(
        metadata=k8s.V1ObjectMeta(
            labels={**spec.labels, names.COMPONENT: "pod", "sidecar.istio.io/inject": "false"},
            annotations={names.STUDY_FILE: spec.study_file},
        ),
        spec=k8s.V1PodSpec(
            containers=[_container(spec, container)],
            volumes=_volumes(spec),
            restart_policy=restart_policy,
            security_context=k8s.V1PodSecurityContext(
                run_as_non_root=True, seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault")
            ),
            # As PID 1, torchrun would ignore SIGTERM while it has no handler: until its processes have started.
            share_process_namespace=True,
            termination_grace_period_seconds=cluster.pod.grace_seconds,
            service_account_name=cluster.service_account,
            automount_service_account_token=False,
            # Service links would set variables such as MLFLOW_PORT.
            enable_service_links=False,
            priority_class_name=cluster.priority_class,
            node_selector=_node_selector(spec),
            tolerations=[
                k8s.V1Toleration(key=own.key, operator=own.operator, value=own.value, effect=own.effect)
                for own in cluster.tolerations
            ]
            or None,
            image_pull_secrets=[k8s.V1LocalObjectReference(name=name) for name in cluster.image_pull_secrets] or None,
        ),
    )


def plain(model: Any) -> Any:
    """A typed model of the Kubernetes client as plain JSON."""
    return k8s.ApiClient().sanitize_for_serialization(model)


def environment(spec: JobSpec) -> dict[str, str]:
    """The variables of a pod, except those of config maps and secrets; none come from the submitting process."""
    return {
        "PYTHONUNBUFFERED": "1",
        "HOME": _SCRATCH,
        "TMPDIR": _SCRATCH,
        "DIT_CACHE": f"{_SCRATCH}/dit-cache",
        "OMP_NUM_THREADS": str(max(1, math.floor(quantity(spec.cluster.pod.cpu) / spec.cluster.processes_per_pod))),
        # A restarted pod may continue the training of a lost one at once; see dit/storage/lease.py.
        JOB: f"{spec.namespace}/{spec.name}",
        # At this level torchrun logs the ranks of a pod.
        "LOGLEVEL": "INFO",
        # With a shared store, agents publish its address only in the first round: a restarted pod would wait a minute
        # for the address, fail, and take the running pods down.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        # torchrun's default kills its processes 30 seconds after SIGTERM.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, spec.cluster.pod.grace_seconds - _LAST_SECONDS)),
        # Waiting two minutes for the store is cheaper than to restart all pods from the last checkpoint.
        "AWS_MAX_ATTEMPTS": "20",
        **spec.cluster.env,
    }


def _container(spec: JobSpec, name: str) -> k8s.V1Container:
    return k8s.V1Container(
        name=name,
        image=spec.image,
        command=["python"],
        args=spec.arguments,
        # The end of a failed container's log is then in the pod's status, which outlives the connection to the log.
        termination_message_policy="FallbackToLogsOnError",
        env=_variables(spec),
        resources=_resources(spec),
        security_context=k8s.V1SecurityContext(
            allow_privilege_escalation=False,
            read_only_root_filesystem=True,
            capabilities=k8s.V1Capabilities(drop=["ALL"]),
        ),
        volume_mounts=[
            k8s.V1VolumeMount(name="scratch", mount_path=_SCRATCH),
            k8s.V1VolumeMount(name="shared-memory", mount_path="/dev/shm"),
            k8s.V1VolumeMount(name="study", mount_path=STUDY_PATH.rpartition("/")[0], read_only=True),
        ],
    )


def _variables(spec: JobSpec) -> list[k8s.V1EnvVar]:
    """Each key by its own reference: a missing key then keeps the pod from starting, and Kubernetes names it."""
    plain = environment(spec)
    variables = [k8s.V1EnvVar(name=name, value=value) for name, value in plain.items()]
    for source, kind, reference in (
        (spec.cluster.config_maps, k8s.V1ConfigMapKeySelector, "config_map_key_ref"),
        (spec.cluster.secrets, k8s.V1SecretKeySelector, "secret_key_ref"),
    ):
        for name, keys in source.items():
            for key in keys:
                if key not in plain:
                    value = k8s.V1EnvVarSource(**{reference: kind(name=name, key=key)})
                    variables.append(k8s.V1EnvVar(name=key, value_from=value))
    return variables


def _resources(spec: JobSpec) -> k8s.V1ResourceRequirements:
    pod = spec.cluster.pod
    gpus = {spec.cluster.gpu_resource: str(spec.cluster.gpus_per_pod)} if spec.cluster.gpus_per_pod else {}
    # No CPU limit: all pods wait for one that is throttled.
    return k8s.V1ResourceRequirements(
        requests={"cpu": pod.cpu, "memory": pod.memory, "ephemeral-storage": pod.scratch, **gpus},
        limits={"memory": pod.memory, **gpus},
    )


def _volumes(spec: JobSpec) -> list[k8s.V1Volume]:
    study = k8s.V1DownwardAPIVolumeFile(
        path=STUDY_PATH.rpartition("/")[2],
        field_ref=k8s.V1ObjectFieldSelector(field_path=f"metadata.annotations['{names.STUDY_FILE}']"),
    )
    pod = spec.cluster.pod
    return [
        k8s.V1Volume(name="scratch", empty_dir=k8s.V1EmptyDirVolumeSource(size_limit=pod.scratch)),
        k8s.V1Volume(
            name="shared-memory", empty_dir=k8s.V1EmptyDirVolumeSource(medium="Memory", size_limit=pod.shared_memory)
        ),
        k8s.V1Volume(name="study", downward_api=k8s.V1DownwardAPIVolumeSource(items=[study])),
    ]


def _node_selector(spec: JobSpec) -> dict[str, str] | None:
    product = {PRODUCT_LABEL: spec.cluster.gpu_product} if spec.cluster.gpu_product else {}
    return {**spec.cluster.node_selector, **product} or None
