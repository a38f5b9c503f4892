"""Scenario 5: what cannot start says why within two minutes, in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml
from kube import NAMESPACE, Object, apply, delete, has_crd
from studies import STUDY_FILE, TEST, Running, Site, Study

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
SECONDS = 120.0
TWO_PODS = "cluster.replicas=2"
POWERLESS = "test-powerless"


@pytest.fixture
def powerless() -> Iterator[str]:
    """A service account without rights."""
    apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": POWERLESS, "namespace": NAMESPACE, "labels": TEST}})
    yield POWERLESS
    delete("serviceaccount", POWERLESS)


def privileged(study: Study) -> Object:
    """The job as it is submitted, into which something on its way has put a privileged container."""
    command = [sys.executable, "-m", "pipelines.jobs", "render", str(STUDY_FILE), "--root", study.site.root]
    command += ["--variant", "mini-S/2", "--image", study.site.image]
    command += [word for override in study.overrides for word in ("--set", override)]
    job = yaml.safe_load(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    container = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    container["securityContext"] = {"privileged": True}
    return job


def test_each_says_why(site: Site, powerless: str) -> None:
    nine = ("cluster.replicas=1", "cluster.gpus_per_pod=9", "train.global_batch=63")
    registry = os.environ["REGISTRY"]
    injected = site.study("injected", TWO_PODS)
    apply(privileged(injected))
    waiting: dict[str, Running] = {
        "finds no node: 0/": site.study("nine", *nine).launch(),
        f"cannot pull {registry}/dit-scaling:none": site.study("image", TWO_PODS).launch(image=f"{registry}/dit-scaling:none"),
        'secret "nothing" not found': site.study("secret", TWO_PODS, "cluster.secrets={nothing: [KEY]}").launch(),
        "violates PodSecurity": injected.launch(),
        f"serviceaccount:{NAMESPACE}:{POWERLESS}\" cannot": site.study("rights", TWO_PODS).launch(account=powerless),
        "service account": site.study("account", TWO_PODS, "cluster.service_account=nobody").launch(),
    }
    for text, launcher in waiting.items():
        line = launcher.says(text, SECONDS)
        print(line)
    ...
