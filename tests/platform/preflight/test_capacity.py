"""Which nodes are usable, how many pods fit on them, and whether a queue's quota is too small or too large."""

from __future__ import annotations

from typing import Any

import pytest

from dit.study.cluster import ClusterConfig
from pipelines.preflight.capacity import crowding, excess, fitting, of_pod, shortage, usable

A100 = "NVIDIA-A100-SXM4-80GB"


def cluster(**values: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"gpu_product": A100, **values})


def node(labels: dict[str, str] | None = None, taint: str | None = None, **spec: Any) -> dict[str, Any]:
    taints = {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": taint}]} if taint else {}
    return {"metadata": {"labels": labels or {"nvidia.com/gpu.product": A100}}, "spec": {**taints, **spec}}


def test_a_node_is_usable_if_it_is_schedulable_and_its_labels_match() -> None:
    assert usable(cluster(), node(), gpus=True)
    assert not usable(cluster(), node({"nvidia.com/gpu.product": "NVIDIA-L4"}), gpus=True)
    assert not usable(cluster(node_selector={"zone": "a"}), node(), gpus=True)
    assert not usable(cluster(), node(unschedulable=True), gpus=True)
    assert usable(cluster(), node({"any": "node"}), gpus=False)


@pytest.mark.parametrize(
    ("taint", "toleration", "usable_"),
    [
        ("NoSchedule", None, False),
        ("PreferNoSchedule", None, True),
        ("NoSchedule", {"key": "nvidia.com/gpu"}, True),
        ("NoSchedule", {"key": "other"}, False),
        ("NoExecute", {"key": "nvidia.com/gpu", "effect": "NoSchedule"}, False),
        ("NoSchedule", {"key": "nvidia.com/gpu", "operator": "Equal", "value": "present"}, True),
        ("NoSchedule", {"key": "nvidia.com/gpu", "operator": "Equal", "value": "absent"}, False),
    ],
)
def test_pods_need_tolerations_for_taints(taint: str, toleration: dict[str, str] | None, usable_: bool) -> None:
    own = cluster(tolerations=[toleration] if toleration else [])
    assert usable(own, node(taint=taint), gpus=True) is usable_
    # Only pods with GPUs have the study's tolerations.
    assert usable(own, node(taint=taint), gpus=False) is (taint == "PreferNoSchedule")


@pytest.mark.parametrize(
    ("offered", "pods"),
    [
        ({"cpu": "96", "memory": "1000Gi", "ephemeral-storage": "2Ti", "nvidia.com/gpu": "8"}, 4),
        ({"cpu": "20", "memory": "1000Gi", "ephemeral-storage": "2Ti", "nvidia.com/gpu": "8"}, 2),
        ({"cpu": "96", "memory": "67108863Ki", "ephemeral-storage": "2Ti", "nvidia.com/gpu": "8"}, 0),
        ({"cpu": "96", "memory": "1000Gi", "ephemeral-storage": "2Ti", "nvidia.com/gpu": "0"}, 0),
        ({"cpu": "96", "memory": "1000Gi", "ephemeral-storage": "2Ti"}, 0),
    ],
)
def test_the_scarcest_resource_decides_how_many_pods_fit(offered: dict[str, str], pods: int) -> None:
    asked = of_pod(cluster(gpus_per_pod=2, pod={"cpu": "8", "memory": "64Gi", "scratch": "100Gi"}))
    assert fitting({"status": {"allocatable": offered}}, asked) == pods


def offering(gpus: int = 8, disk: str = "2Ti", **rest: Any) -> dict[str, Any]:
    offered = {"cpu": "96", "memory": "1000Gi", "ephemeral-storage": disk, "nvidia.com/gpu": str(gpus)}
    return {**node(**rest), "status": {"allocatable": offered}}


def test_one_pod_may_have_all_gpus_of_a_node() -> None:
    whole = cluster(replicas=1, gpus_per_pod=8, pod={"cpu": "64", "memory": "512Gi", "scratch": "100Gi"})
    assert fitting(offering(8), of_pod(whole)) == 1
    assert fitting(offering(7), of_pod(whole)) == 0
    assert list(shortage(whole, queue([{"nominalQuota": "8"}]))) == []
    assert list(shortage(whole, queue([{"nominalQuota": "7"}]))) == ["nvidia.com/gpu: 1 x 8 of 7"]


@pytest.mark.parametrize(
    ("parts", "scratch", "disk", "message"),
    [
        (16, "200Gi", "2Ti", None),
        (16, "300Gi", "2Ti", "8 pods of prepare may share node one, whose disk has room for 6 of 300Gi"),
        # Six fit, and no more than the node's GPUs can share it.
        (6, "300Gi", "2Ti", None),
        (16, "200Gi", "1Ti", "8 pods of prepare may share node one, whose disk has room for 5 of 200Gi"),
    ],
)
def test_parts_of_the_preparation_share_a_nodes_disk(parts: int, scratch: str, disk: str, message: str | None) -> None:
    step = {"cpu": 8, "memory": "32Gi", "gpus": 1, "scratch": scratch}
    asked = cluster(steps={"parts": parts, "prepare": step})
    large, small = offering(disk=disk), offering(disk="1Gi", labels={"nvidia.com/gpu.product": "NVIDIA-L4"})
    large["metadata"]["name"] = "one"
    assert crowding(asked, [small, large]) == message


def queue(gpus: list[dict[str, str]], **spec: Any) -> dict[str, Any]:
    others = [{"name": name, "nominalQuota": "1000Ti"} for name in ("cpu", "memory", "ephemeral-storage")]
    flavors = [
        {"name": str(at), "resources": [*others, {"name": "nvidia.com/gpu", **item}]} for at, item in enumerate(gpus)
    ]
    return {"spec": {"resourceGroups": [{"flavors": flavors}], **spec}}


@pytest.mark.parametrize(
    ("result", "lacks"),
    [
        (queue([{"nominalQuota": "8"}]), []),
        (queue([{"nominalQuota": "7"}]), ["nvidia.com/gpu: 8 x 1 of 7"]),
        # A job gets one flavor.
        (queue([{"nominalQuota": "4"}, {"nominalQuota": "6"}]), ["nvidia.com/gpu: 8 x 1 of 6"]),
        (queue([{"nominalQuota": "0"}], cohort="all"), []),
        (queue([{"nominalQuota": "4", "borrowingLimit": "4"}], cohort="all"), []),
        (queue([{"nominalQuota": "4", "borrowingLimit": "3"}], cohort="all"), ["nvidia.com/gpu: 8 x 1 of 4"]),
    ],
)
def test_the_shortage_of_a_queue_for_one_job(result: dict[str, Any], lacks: list[str]) -> None:
    # The quota of the other resources is large enough.
    assert list(shortage(cluster(), result)) == lacks


def test_a_resource_that_the_queue_does_not_cover_is_named() -> None:
    assert "memory is not covered" in list(shortage(cluster(), {"spec": {"resourceGroups": []}}))


@pytest.mark.parametrize(
    ("quotas", "gpus", "message"),
    [
        (["32"], [8, 8, 8, 8], None),
        (["32"], [8], f"its quota is 32 nvidia.com/gpu, but nodes with {A100} have 8"),
        (["8"], [], f"its quota is 8 nvidia.com/gpu, but nodes with {A100} have 0"),
        # With two flavors, one has other nodes.
        (["8", "32"], [8], None),
    ],
)
def test_a_quota_above_the_capacity_of_the_nodes_is_reported(
    quotas: list[str], gpus: list[int], message: str | None
) -> None:
    result = queue([{"nominalQuota": item} for item in quotas])
    nodes = [*map(offering, gpus), offering(8, labels={"nvidia.com/gpu.product": "NVIDIA-L4"})]
    assert excess(cluster(), result, nodes) == message


def test_no_quota_is_too_large_if_nodes_are_unknown_or_no_gpus_are_requested() -> None:
    result = queue([{"nominalQuota": "32"}])
    assert excess(cluster(), result, None) is None
    assert excess(cluster(gpu_product=None, gpus_per_pod=0), result, []) is None
