"""Whether nodes and queue have room for a job: not whether it is free, for a job may wait, but whether it is there."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from dit.cluster import PRODUCT_LABEL, ClusterConfig, Toleration, quantity
from pipelines.jobs.client import NOT_FOUND, ApiRefused
from pipelines.jobs.kinds import Object, condition
from pipelines.preflight.finding import Finding, Site, failed, ok, unknown

_KUEUE = "/apis/kueue.x-k8s.io/v1beta1"


def gpus(site: Site) -> Iterator[Finding]:
    """Whether the nodes that a job's pods may run on have GPUs for all of them."""
    cluster = site.config.cluster
    nodes = [node for node in site.cluster.ask("/api/v1/nodes")["items"] if usable(cluster, node)]
    if not cluster.gpus_per_pod:
        text = f"{len(nodes)} nodes take pods without GPUs"
        yield ok("nodes", text) if nodes else failed("nodes", f"{text}; {_see(cluster)}")
        return
    pods = sum(fitting(cluster, node) for node in nodes)
    kind = cluster.gpu_product or cluster.gpu_resource
    text = f"{len(nodes)} nodes offer {kind} for {pods} of {cluster.replicas} pods of {cluster.gpus_per_pod}"
    if pods >= cluster.replicas:
        yield ok("GPUs", text)
    elif cluster.queue:
        # Behind a queue, nodes may be made when they are needed.
        yield unknown("GPUs", f"{text} now; the job waits until there are more; {_see(cluster)}")
    else:
        yield failed("GPUs", f"{text}; ask for fewer by cluster.replicas, or see: {_see(cluster)}")


def usable(cluster: ClusterConfig, node: Object) -> bool:
    """Whether the scheduler would consider a node for a job's pods: labels, taints, not set aside."""
    labels = node["metadata"].get("labels") or {}
    wanted = dict(cluster.node_selector)
    if cluster.gpu_product:
        wanted[PRODUCT_LABEL] = cluster.gpu_product
    if node["spec"].get("unschedulable") or not wanted.items() <= labels.items():
        return False
    taints = [one for one in node["spec"].get("taints") or [] if one["effect"] != "PreferNoSchedule"]
    # What the device plug-in's admission adds to pods that ask for a GPU, where it is switched on, is not known here.
    return all(any(_tolerates(own, taint) for own in cluster.tolerations) for taint in taints)


def _tolerates(own: Toleration, taint: Object) -> bool:
    if own.key != taint["key"] or own.effect not in (None, taint["effect"]):
        return False
    return own.operator == "Exists" or own.value == taint.get("value", "")


def fitting(cluster: ClusterConfig, node: Object) -> int:
    """How many of a job's pods a node's GPUs, all of them, are enough for."""
    offered = int(node["status"].get("allocatable", {}).get(cluster.gpu_resource, "0"))
    return offered // max(1, cluster.gpus_per_pod)


def queue(site: Site) -> Iterator[Finding]:
    """Whether Kueue's queue is there, works, and has quota for a whole job."""
    cluster = site.config.cluster
    if not cluster.queue:
        return
    subject, place = f"queue {cluster.queue}", f"LocalQueue {site.namespace}/{cluster.queue}"
    try:
        local = site.cluster.ask(f"{_KUEUE}/namespaces/{site.namespace}/localqueues/{cluster.queue}")
    except ApiRefused as error:
        if error.status != NOT_FOUND:
            raise
        yield failed(subject, f"there is no {place}; make deploy OVERLAY=kind-queue, or a100, or clear cluster.queue")
        return
    name = local["spec"]["clusterQueue"]
    see = f"kubectl describe clusterqueue {name}"
    active = condition(local, "Active")
    if active is not None and active["status"] != "True":
        yield failed(subject, f"{place} is not active: {active.get('message', '')}; {see}")
        return
    short = list(shortage(cluster, site.cluster.ask(f"{_KUEUE}/clusterqueues/{name}")))
    if short:
        yield failed(subject, f"ClusterQueue {name} can never admit the job: {', '.join(short)}; {see}")
    else:
        yield ok(subject, f"{place} is active, and ClusterQueue {name} has quota for {cluster.replicas} pods")


def shortage(cluster: ClusterConfig, queue: Object) -> Iterator[str]:
    """What a queue's quota lacks for one job, resource by resource; what it may borrow counts as its own."""
    pod = cluster.pod
    asked = {"cpu": pod.cpu, "memory": pod.memory, "ephemeral-storage": pod.scratch}
    if cluster.gpus_per_pod:
        asked[cluster.gpu_resource] = str(cluster.gpus_per_pod)
    for name, each in asked.items():
        quotas = [quota for quota in _quotas(queue) if quota["name"] == name]
        if not quotas:
            yield f"{name} is not covered"
        elif cohort := queue["spec"].get("cohort"):
            # Without a limit, all of a cohort can be borrowed.
            if all("borrowingLimit" in quota for quota in quotas):
                yield from _missing(cluster, name, each, quotas, f" with cohort {cohort}")
        else:
            yield from _missing(cluster, name, each, quotas, "")


def _missing(cluster: ClusterConfig, name: str, each: str, quotas: list[dict[str, Any]], of: str) -> Iterator[str]:
    """A job's pods are alike, and so get one flavor."""
    most = max(_amount(quota["nominalQuota"]) + _amount(quota.get("borrowingLimit", "0")) for quota in quotas)
    wanted = cluster.replicas * quantity(each)
    if wanted > most:
        yield f"{name} {cluster.replicas} x {each}, quota {max(quota['nominalQuota'] for quota in quotas)}{of}"


def _quotas(queue: Object) -> list[dict[str, Any]]:
    return [
        resource
        for group in queue["spec"].get("resourceGroups") or []
        for flavor in group["flavors"]
        for resource in flavor["resources"]
    ]


def _amount(text: object) -> Decimal:
    return Decimal(0) if str(text) == "0" else quantity(str(text))


def _see(cluster: ClusterConfig) -> str:
    label = f" -L {PRODUCT_LABEL}" if cluster.gpu_product else ""
    return f"kubectl get nodes{label}; kubectl describe nodes"
