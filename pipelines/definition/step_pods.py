"""Settings of the pods of pipeline steps: the `cluster:` section of the study as kfp's settings."""

from __future__ import annotations

import math
import re
from typing import Any

from kfp import kubernetes

from dit.results.stages import PodKind
from dit.study.cluster import PRODUCT_LABEL, ClusterConfig, StepConfig, quantity
from pipelines.cluster.client import LAUNCHER_ACCOUNT
from pipelines.cluster.store_access import SECRETS, holds_s3_keys
from pipelines.jobs.names import LAUNCHER_TOKEN

_SCRATCH = "/tmp"
# Argo measures this from the first attempt. After it, no retry starts and a running attempt is killed.
_RETRY_WINDOW = f"{365 * 24 * 3600}s"


def set_pod_settings(task: Any, kind: PodKind, cluster: ClusterConfig) -> None:
    """Set a task's resources, variables, node selection and retries."""
    step: StepConfig = getattr(cluster.steps, kind)
    _resources(task, step, cluster)
    _variables(task, step, cluster)
    if kind == "launch":
        _mount_secrets(task, cluster)
        # All pods of a run have one account, so steps that decode images or samples cannot have another one.
        kubernetes.use_secret_as_volume(task, LAUNCHER_TOKEN, str(LAUNCHER_ACCOUNT), optional=True)
    if step.gpus:
        _nodes(task, cluster)
    if cluster.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.image_pull_secrets))
    kubernetes.set_security_context(task, run_as_non_root=True)
    if step.timeout_seconds:
        kubernetes.set_timeout(task, step.timeout_seconds)
    # Kubeflow Pipelines' default is retryPolicy OnError: a step is retried when its pod is lost, not when it exits with
    # an error.
    if cluster.steps.retries:
        task.set_retry(cluster.steps.retries, f"{cluster.steps.retry_seconds}s", 2.0, _RETRY_WINDOW)


def _resources(task: Any, step: StepConfig, cluster: ClusterConfig) -> None:
    # Without a CPU limit, as in the pods of jobs, a step may use idle cores.
    task.set_cpu_request(_cpu(step.cpu)).set_memory_request(_memory(step.memory)).set_memory_limit(_memory(step.memory))
    if step.gpus:
        task.set_accelerator_type(cluster.gpu_resource).set_accelerator_limit(step.gpus)
    kubernetes.empty_dir_mount(task, "scratch", _SCRATCH, size_limit=_memory(step.scratch))
    kubernetes.empty_dir_mount(
        task, "shared-memory", "/dev/shm", medium="Memory", size_limit=_memory(step.shared_memory)
    )


def _variables(task: Any, step: StepConfig, cluster: ClusterConfig) -> None:
    # The image's home is /tmp, so caches are on the scratch volume.
    plain = {
        "OMP_NUM_THREADS": str(max(1, math.floor(quantity(step.cpu)))),
        **cluster.env,
    }
    for name, value in plain.items():
        task.set_env_variable(name, value)
    for sources, use in (
        (cluster.config_maps, kubernetes.use_config_map_as_env),
        (cluster.secrets, kubernetes.use_secret_as_env),
    ):
        for source, keys in sources.items():
            if wanted := {key: key for key in keys if key not in plain}:
                use(task, source, wanted)


def _mount_secrets(task: Any, cluster: ClusterConfig) -> None:
    """The store's credentials as files, too: a launcher waits for days, and they may be replaced meanwhile."""
    for name, keys in cluster.secrets.items():
        if holds_s3_keys(keys):
            kubernetes.use_secret_as_volume(task, name, str(SECRETS / name), optional=True)


def _nodes(task: Any, cluster: ClusterConfig) -> None:
    product = {PRODUCT_LABEL: cluster.gpu_product} if cluster.gpu_product else {}
    for label, value in {**cluster.node_selector, **product}.items():
        kubernetes.add_node_selector(task, label, value)
    for one in cluster.tolerations:
        kubernetes.add_toleration(task, one.key, one.operator, one.value, one.effect)


def _cpu(text: str) -> str:
    """A quantity as kfp takes it: cores, or thousandths of them."""
    return text if re.fullmatch(r"[\d.]+m?", text) else str(math.ceil(quantity(text)))


def _memory(text: str) -> str:
    """A quantity as kfp takes it: without fractions."""
    return text if re.fullmatch(r"\d+([KMGT]i?)?", text) else str(math.ceil(quantity(text)))
