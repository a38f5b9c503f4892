"""Which nodes a job's pods may run on, how many fit, and what a queue's quota lacks."""

from __future__ import annotations

from typing import Any

import pytest

from dit.cluster import ClusterConfig
from pipelines.preflight.capacity import fitting, of_pod, shortage, usable

A100 = "NVIDIA-A100-SXM4-80GB"


def cluster(**values: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"gpu_product": A100, **values})


def node(labels: dict[str, str] | None = None, taint: str | None = None, **spec: Any) -> dict[str, Any]:
    taints = {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": taint}]} if taint else {}
    return {"metadata": {"labels": labels or {"nvidia.com/gpu.product": A100}}, "spec": {**taints, **spec}}


def test_a_node_of_the_kind_asked_for_is_usable() -> None:
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
def test_taints_keep_pods_away_that_do_not_accept_them(
    taint: str, toleration: dict[str, str] | None, usable_: bool
) -> None:
    own = cluster(tolerations=[toleration] if toleration else [])
    assert usable(own, node(taint=taint), gpus=True) is usable_
    # Only the pods with GPUs carry the study's tolerations.
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


def queue(gpus: list[dict[str, str]], **spec: Any) -> dict[str, Any]:
    others = [{"name": name, "nominalQuota": "1000Ti"} for name in ("cpu", "memory", "ephemeral-storage")]
    flavors = [
        {"name": str(at), "resources": [*others, {"name": "nvidia.com/gpu", **one}]} for at, one in enumerate(gpus)
    ]
    return {"spec": {"resourceGroups": [{"flavors": flavors}], **spec}}


@pytest.mark.parametrize(
    ("found", "lacks"),
    [
        (queue([{"nominalQuota": "8"}]), []),
        (queue([{"nominalQuota": "7"}]), ["nvidia.com/gpu: 8 x 1 of 7"]),
        # One job takes one flavor.
        (queue([{"nominalQuota": "4"}, {"nominalQuota": "6"}]), ["nvidia.com/gpu: 8 x 1 of 6"]),
        (queue([{"nominalQuota": "0"}], cohort="all"), []),
        (queue([{"nominalQuota": "4", "borrowingLimit": "4"}], cohort="all"), []),
        (queue([{"nominalQuota": "4", "borrowingLimit": "3"}], cohort="all"), ["nvidia.com/gpu: 8 x 1 of 4"]),
    ],
)
def test_what_a_queue_lacks_for_one_job(found: dict[str, Any], lacks: list[str]) -> None:
    # The other resources' quota has no limit to borrow, and is enough.
    assert list(shortage(cluster(), found)) == lacks


def test_a_resource_that_the_queue_does_not_cover_is_named() -> None:
    assert "memory is not covered" in list(shortage(cluster(), {"spec": {"resourceGroups": []}}))
