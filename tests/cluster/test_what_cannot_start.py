"""Scenario 5: what cannot start says why within two minutes, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import yaml
from kube import NAMESPACE, OURS, SESSION, Object, apply, delete, has_crd
from studies import STUDY_FILE, Running, Site, Study

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
SECONDS = 120.0
ONE = ("cluster.replicas=1",)
POWERLESS = f"test-powerless-{SESSION}"
NO_IMAGE = "dit-scaling:of-no-such-tag"
TRAINJOB = "trainjobs.trainer.kubeflow.org"


def privileged(study: Study) -> Object:
    """The job as it is submitted, into which something on its way has put a privileged container."""
    command = [sys.executable, "-m", "pipelines.jobs", "render", str(STUDY_FILE), "--root", study.site.root]
    command += ["--variant", "mini-S/2", "--image", study.site.image]
    command += [word for override in study.overrides for word in ("--set", override)]
    job: Object = yaml.safe_load(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    container = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    container["securityContext"] = {"privileged": True}
    return job


@pytest.fixture(scope="module")
def started(site: Site) -> Iterator[tuple[float, dict[str, Running]]]:
    """Launchers of what cannot start, all at once, and when that was."""
    metadata = {"name": POWERLESS, "namespace": NAMESPACE, "labels": OURS}
    apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    injected = site.study("injected", *ONE)
    apply(privileged(injected))
    launchers = {
        "gpus": site.study("gpus", *ONE, "cluster.gpus_per_pod=9", "train.global_batch=63").launch(),
        "image": site.study("image", *ONE).launch(image=f"{os.environ['REGISTRY']}/{NO_IMAGE}"),
        "secret": site.study("secret", *ONE, "cluster.secrets={of-no-such-name: [KEY]}").launch(),
        "account": site.study("account", *ONE, "cluster.service_account=of-no-such-name").launch(),
        "restricted": injected.launch(),
        "rights": site.study("rights", *ONE).launch(account=POWERLESS),
    }
    yield time.monotonic(), launchers
    delete("serviceaccount", POWERLESS)


@pytest.mark.parametrize(
    ("what", "why", "remedy"),
    [
        ("gpus", "finds no node: 0/", "kubectl describe nodes"),
        ("image", f"/{NO_IMAGE}: Failed to pull image", "push the image"),
        ("secret", 'secret "of-no-such-name" not found', f"kubectl get secrets -n {NAMESPACE}"),
        ("account", "of-no-such-name", f"kubectl get serviceaccounts -n {NAMESPACE}"),
        ("restricted", "violates PodSecurity", f"kubectl get ns {NAMESPACE} --show-labels"),
        ("rights", f'{POWERLESS}" cannot get resource "pytorchjobs"', "kubectl auth can-i --list"),
    ],
)
def test_why(started: tuple[float, dict[str, Running]], what: str, why: str, remedy: str) -> None:
    since, launchers = started
    line = launchers[what].says(why, since + SECONDS - time.monotonic())
    assert remedy in line


@pytest.mark.parametrize("what", ["image", "secret", "account", "restricted", "rights"])
def test_what_waiting_cannot_mend_ends_the_step(started: tuple[float, dict[str, Running]], what: str) -> None:
    since, launchers = started
    ended = launchers[what].end(max(1.0, since + SECONDS + 30.0 - time.monotonic()))
    assert ended.code in (1, 2), ended.log


@pytest.fixture
def no_trainjobs() -> Iterator[None]:
    """A cluster without the kind TrainJob; where it has one, INSTALL_TRAINER is the command that brings it back."""
    if not has_crd(TRAINJOB):
        yield
        return
    if "INSTALL_TRAINER" not in os.environ:
        pytest.skip(f"the cluster has {TRAINJOB}, and INSTALL_TRAINER, which installs it, is not set")
    delete("crd", TRAINJOB, "")
    yield
    subprocess.run(os.environ["INSTALL_TRAINER"], shell=True, check=True)


@pytest.mark.usefixtures("no_trainjobs")
def test_a_kind_that_the_cluster_does_not_know(site: Site) -> None:
    ended = site.study("crd", "cluster.job=trainjob").launch().end(SECONDS)
    assert ended.code == 2, ended.log
    assert "the cluster knows no TrainJob" in ended.last_line
    assert f"kubectl get crd {TRAINJOB}" in ended.last_line
