"""The pod that every kind of job is made of, as the Pod Security standard `restricted` wants it."""

from __future__ import annotations

import math
from typing import Any

from kubernetes import client as k8s

from dit.study.cluster import PRODUCT_LABEL, quantity
from pipelines.jobs import names
from pipelines.jobs.spec import STUDY_PATH, JobSpec

_SCRATCH = "/tmp"
_LAST_SECONDS = 5
"""Of a pod's grace, what is left to torchrun itself, once its processes have ended or are ended."""


def template(spec: JobSpec, container: str, restart_policy: str | None = None) -> k8s.V1PodTemplateSpec:
    """Pod of a job; `container` is the name that the job's controller looks for."""
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
            # As the first process of a namespace of its own torchrun would ignore that it is told to end for as long as
            # it has no processes: while it loads, and while it waits for the other pods.
            share_process_namespace=True,
            termination_grace_period_seconds=cluster.pod.grace_seconds,
            service_account_name=cluster.service_account,
            automount_service_account_token=False,
            # Services would put variables such as MLFLOW_PORT into the pod.
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
    """A typed model as the JSON that the API takes."""
    return k8s.ApiClient().sanitize_for_serialization(model)


def environment(spec: JobSpec) -> dict[str, str]:
    """All variables but those of config maps and secrets: nothing is taken over from the process that submits."""
    return {
        "PYTHONUNBUFFERED": "1",
        "HOME": _SCRATCH,
        "TMPDIR": _SCRATCH,
        "DIT_CACHE": f"{_SCRATCH}/dit-cache",
        "OMP_NUM_THREADS": str(max(1, math.floor(quantity(spec.cluster.pod.cpu) / spec.cluster.processes_per_pod))),
        # At this level torchrun prints which ranks a pod has been given.
        "LOGLEVEL": "INFO",
        # Agents that share the rendezvous' store publish its address in the first round only: a pod that is started
        # again beside others that still run would wait a minute for it, fail, and take them along.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        # Left to itself torchrun kills its processes half a minute after it was told to end.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, spec.cluster.pod.grace_seconds - _LAST_SECONDS)),
        # A store that is away for two minutes costs less than all pods' way back to their last checkpoint.
        "AWS_MAX_ATTEMPTS": "20",
        **spec.cluster.env,
    }


def _container(spec: JobSpec, name: str) -> k8s.V1Container:
    return k8s.V1Container(
        name=name,
        image=spec.image,
        command=["python"],
        args=spec.arguments,
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
    """Key by key, so that one that is missing keeps the pod from starting, and is named."""
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
    # No limit of CPU: a pod that is held back at a busy moment holds back all the others.
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
