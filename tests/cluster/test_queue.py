"""Scenario 9: studies in a Kueue queue of 8 GPUs; and the queue without quota of scenario 5."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from kube import Object, apply, delete, has_crd, kubectl, until
from studies import Running, Site

from pipelines.deploy import ROOT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.alone,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("dataset", "queue"),
]
CLUSTER_QUEUE = "clusterqueues.kueue.x-k8s.io"
MANIFESTS = (ROOT / "k8s" / "queue", ROOT / "k8s" / "overlays" / "kind-queue" / "door")
QUEUE = "cluster.queue=dit-scaling"
ANOTHER = "of-nine"


@pytest.fixture(scope="module")
def queue() -> Iterator[None]:
    """The queue of overlay kind-queue, and a copy of it."""
    if not has_crd(CLUSTER_QUEUE):
        pytest.skip(f"the cluster does not serve {CLUSTER_QUEUE}: Kueue is not installed")
    for folder in MANIFESTS:
        until("Kueue takes its objects", lambda path=folder: kubectl("apply", "--server-side", "-k", str(path)), 60)
    # In the same queue, a study that never starts would block the later ones.
    of_their_own = another_like_it()
    apply(*of_their_own)
    yield
    for made in of_their_own:
        delete(made["kind"], made["metadata"]["name"], wait=False)
    for folder in reversed(MANIFESTS):
        kubectl("delete", "-k", str(folder), "--wait=false")


def another_like_it() -> list[Object]:
    """The same queue under another name."""
    queues = []
    for folder in MANIFESTS:
        for item in yaml.safe_load_all(kubectl("kustomize", str(folder))):
            if item["kind"] in ("ClusterQueue", "LocalQueue"):
                item["metadata"]["name"] = ANOTHER
                queues.append(item)
            if item["kind"] == "LocalQueue":
                item["spec"]["clusterQueue"] = ANOTHER
    return queues


@pytest.fixture(scope="module")
def nine(site: Site) -> Running:
    """Launcher of a study that requests more than the capacity of its queue."""
    return site.study("nine", "cluster.replicas=9", "train.global_batch=63", f"cluster.queue={ANOTHER}").launch()


@pytest.mark.usefixtures("nine")  # its timeout runs in parallel
def test_the_second_study_waits_for_the_first(site: Site) -> None:
    recipe = ("train.steps=100", "cluster.replicas=2", QUEUE)
    first = site.study("first", *recipe, "cluster.gpus_per_pod=4", "cluster.pod.memory=4Gi")
    second = site.study("second", *recipe)
    running = first.launch()
    running.says("all 2 pods run", 120)
    waiting = second.launch()
    line = waiting.says("waits in queue dit-scaling", 120)
    assert "insufficient unused quota for nvidia.com/gpu" in line
    assert "it starts when quota becomes free" in line
    assert not second.workers()
    assert running.end(600).code == 0
    waiting.says("all 2 pods run", 120)
    ended = waiting.end(600)
    assert ended.code == 0, ended.log
    for study in (first, second):
        study.check_losses()


def test_a_queue_that_is_too_small_is_unrecoverable(nine: Running) -> None:
    _, seconds = nine.wait_for_line("maximum capacity (9 > 8)", 120)
    assert seconds <= 120
    ended = nine.end(300)
    assert ended.code == 1
    assert f"waits in queue {ANOTHER}" in ended.last_line
    assert "maximum capacity (9 > 8)" in ended.last_line
