"""Whether nodes and queue are large enough for a job. Free capacity does not matter: a job can wait for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from dit.results.stages import STAGES
from dit.study.cluster import PRODUCT_LABEL, ClusterConfig, StepConfig, Toleration, quantity
from pipelines.cluster.client import ApiRefused
from pipelines.cluster.objects import Object, condition
from pipelines.preflight.finding import Finding, Site, failed, ok, unknown

Requests = Mapping[str, str]
"""Resources that one pod requests: name -> quantity."""

_KUEUE = "/apis/kueue.x-k8s.io/v1beta1"
_STEPS = tuple(dict.fromkeys(stage.pod for stage in STAGES))
_DISK = "ephemeral-storage"


def nodes(site: Site) -> Iterator[Finding]:
    """Whether the nodes, if empty, have room for all pods of a job, and for each kind of step."""
    cluster = site.config.cluster
    nodes = site.cluster.ask("/api/v1/nodes")["items"]
    yield _job(cluster, nodes)
    if site.endpoint:
        yield _steps(cluster, nodes)


def _job(cluster: ClusterConfig, nodes: list[Object]) -> Finding:
    subject = "GPUs" if cluster.gpus_per_pod else "nodes"
    requests = of_pod(cluster)
    fit = [(node, fitting(node, requests)) for node in nodes if usable(cluster, node, gpus=True)]
    pods = sum(room for _, room in fit)
    kind = cluster.gpu_product or cluster.gpu_resource if cluster.gpus_per_pod else "any kind"
    count = sum(room > 0 for _, room in fit)
    text = f"{count} nodes with {kind} have room for {pods} pods of {_listed(requests)}; a job has {cluster.replicas}"
    if pods >= cluster.replicas:
        return ok(subject, text)
    if cluster.queue:
        # With a queue, nodes may be created on demand.
        return unknown(subject, f"{text}; the job waits for more; {_see(cluster)}")
    return failed(subject, f"{text}; lower cluster.replicas or cluster.pod; see {_see(cluster)}")


def _steps(cluster: ClusterConfig, nodes: list[Object]) -> Finding:
    lacking = []
    for name in _STEPS:
        step: StepConfig = getattr(cluster.steps, name)
        requests = {**_scheduled_by(cluster, step), _DISK: step.scratch}
        if not any(usable(cluster, node, gpus=step.gpus > 0) and fitting(node, requests) for node in nodes):
            lacking.append(f"{name} ({_listed(requests)})")
    if lacking:
        remedy = f"lower cluster.steps; see {_see(cluster)}"
        return failed("steps", f"no node has room for {', '.join(lacking)}; {remedy}")
    if crowded := crowding(cluster, nodes):
        return unknown("steps", f"{crowded}; a lower cluster.steps.parts, or cluster.steps.prepare.scratch")
    return ok("steps", f"there is a node for each of {', '.join(_STEPS)}")


def _scheduled_by(cluster: ClusterConfig, step: StepConfig) -> dict[str, str]:
    # Without disk: Kubeflow Pipelines has no setting for a request of it.
    return {"cpu": step.cpu, "memory": step.memory, **_gpus(cluster, step.gpus)}


def crowding(cluster: ClusterConfig, nodes: Iterable[Object]) -> str | None:
    """A description of a node whose disk is too small for the prepare pods that may share it; None if all suffice."""
    step, parts = cluster.steps.prepare, cluster.steps.parts
    for node in nodes:
        if usable(cluster, node, gpus=step.gpus > 0):
            meeting = min(parts, fitting(node, _scheduled_by(cluster, step)))
            stored = fitting(node, {_DISK: step.scratch})
            if meeting > stored:
                place = f"node {node['metadata']['name']}, whose disk has room for {stored} of {step.scratch}"
                return f"{meeting} pods of prepare may share {place}"
    return None


def of_pod(cluster: ClusterConfig) -> dict[str, str]:
    """Requests of each pod of a job."""
    pod = cluster.pod
    return {"cpu": pod.cpu, "memory": pod.memory, _DISK: pod.scratch} | _gpus(cluster, cluster.gpus_per_pod)


def usable(cluster: ClusterConfig, node: Object, gpus: bool) -> bool:
    """Whether the scheduler considers a node: it is schedulable, and its labels and taints fit.

    The study's node selector and tolerations apply only to pods with GPUs.
    """
    labels = node["metadata"].get("labels") or {}
    wanted = dict(cluster.node_selector) if gpus else {}
    if gpus and cluster.gpu_product:
        wanted[PRODUCT_LABEL] = cluster.gpu_product
    if node["spec"].get("unschedulable") or not wanted.items() <= labels.items():
        return False
    taints = [taint for taint in node["spec"].get("taints") or [] if taint["effect"] != "PreferNoSchedule"]
    tolerations = cluster.tolerations if gpus else ()
    return all(any(_tolerates(own, taint) for own in tolerations) for taint in taints)


def _tolerates(own: Toleration, taint: Object) -> bool:
    if own.key != taint["key"] or own.effect not in (None, taint["effect"]):
        return False
    return own.operator == "Exists" or own.value == taint.get("value", "")


def fitting(node: Object, requests: Requests) -> int:
    """How many pods with these requests fit on an empty node."""
    offered = node["status"].get("allocatable", {})
    return int(min(_amount(offered.get(name, "0")) // quantity(each) for name, each in requests.items()))


def queue(site: Site) -> Iterator[Finding]:
    """Whether Kueue's queue exists, is active, and has quota for a whole job, but not for more than the nodes have."""
    cluster = site.config.cluster
    if not cluster.queue:
        return
    subject, place = f"queue {cluster.queue}", f"LocalQueue {site.namespace}/{cluster.queue}"
    local = site.cluster.ask_for(f"{_KUEUE}/namespaces/{site.namespace}/localqueues/{cluster.queue}")
    if local is None:
        yield failed(subject, f"there is no {place}; dit deploy kind-queue, or a100, or clear cluster.queue")
        return
    name = local["spec"]["clusterQueue"]
    see = f"kubectl describe clusterqueue {name}"
    active = condition(local, "Active")
    if active is not None and active["status"] != "True":
        yield failed(subject, f"{place} is not active: {active.get('message', '')}; {see}")
        return
    queue = site.cluster.ask(f"{_KUEUE}/clusterqueues/{name}")
    if short := list(shortage(cluster, queue)):
        yield failed(subject, f"ClusterQueue {name} can never admit the job: {', '.join(short)}; {see}")
    elif over := excess(cluster, queue, _nodes(site)):
        remedy = "lower the quota, unless nodes are created on demand"
        yield unknown(subject, f"ClusterQueue {name} admits jobs that do not fit on nodes: {over}; {remedy}; {see}")
    else:
        yield ok(subject, f"{place} is active, and ClusterQueue {name} has quota for {cluster.replicas} pods")


def _nodes(site: Site) -> list[Object] | None:
    # The check of the nodes reports it if we may not list them.
    try:
        nodes: list[Object] = site.cluster.ask("/api/v1/nodes")["items"]
        return nodes
    except ApiRefused:
        return None


def shortage(cluster: ClusterConfig, queue: Object) -> Iterator[str]:
    """The resources of which a queue's quota, with what it may borrow, is too small for one job."""
    for name, each in of_pod(cluster).items():
        quotas = [quota for quota in _quotas(queue) if quota["name"] == name]
        if not quotas:
            yield f"{name} is not covered"
            continue
        # Without a limit, a queue can borrow all of its cohort's quota.
        if queue["spec"].get("cohort") and any("borrowingLimit" not in quota for quota in quotas):
            continue
        # All pods of a job get the same flavor.
        most = max(quotas, key=_most)
        if cluster.replicas * quantity(each) > _most(most):
            yield f"{name}: {cluster.replicas} x {each} of {most['nominalQuota']}"


def excess(cluster: ClusterConfig, queue: Object, nodes: Iterable[Object] | None) -> str | None:
    """A description of a GPU quota above the number of GPUs on the nodes; None if it is not above."""
    quotas = [quota for quota in _quotas(queue) if quota["name"] == cluster.gpu_resource]
    # With several flavors, the queue does not show which one these nodes belong to.
    if nodes is None or not cluster.gpus_per_pod or len(quotas) != 1:
        return None
    offers = [node["status"].get("allocatable", {}) for node in nodes if usable(cluster, node, gpus=True)]
    there = sum(_amount(offered.get(cluster.gpu_resource, "0")) for offered in offers)
    if _amount(quotas[0]["nominalQuota"]) <= there:
        return None
    kind = f" with {cluster.gpu_product}" if cluster.gpu_product else ""
    return f"its quota is {quotas[0]['nominalQuota']} {cluster.gpu_resource}, but nodes{kind} have {there}"


def _most(quota: Mapping[str, Any]) -> Decimal:
    return _amount(quota["nominalQuota"]) + _amount(quota.get("borrowingLimit", "0"))


def _quotas(queue: Object) -> list[dict[str, Any]]:
    return [
        resource
        for group in queue["spec"].get("resourceGroups") or []
        for flavor in group["flavors"]
        for resource in flavor["resources"]
    ]


def _amount(text: object) -> Decimal:
    return Decimal(0) if str(text) == "0" else quantity(str(text))


def _gpus(cluster: ClusterConfig, count: int) -> dict[str, str]:
    return {cluster.gpu_resource: str(count)} if count else {}


def _listed(requests: Requests) -> str:
    return ", ".join(f"{each} {name}" for name, each in requests.items())


def _see(cluster: ClusterConfig) -> str:
    label = f" -L {PRODUCT_LABEL}" if cluster.gpu_product else ""
    return f"kubectl get nodes{label}; kubectl describe nodes"
