"""Scenario 5: a job that cannot start has a one-line reason within two minutes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from kube import NAMESPACE, delete, has_crd
from studies import STUDY_FILE, Running, Site
from unrecoverable import FORBIDDEN, NO_IMAGE, POWERLESS

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(1200)]
SECONDS = 120.0
TRAINJOB = "trainjobs.trainer.kubeflow.org"


@pytest.mark.parametrize(
    ("what", "why", "remedy"),
    [
        ("gpus", "finds no node: 0/", "kubectl describe nodes"),
        ("image", f"/{NO_IMAGE}: Failed to pull image", "push the image"),
        ("secret", "couldn't find key OF_NO_SUCH_KEY in Secret", f"kubectl get secrets -n {NAMESPACE}"),
        ("forbidden", "a job's pod may read only the secrets", f"kubectl describe namespace {NAMESPACE}"),
        ("account", "of-no-such-name", f"kubectl get serviceaccounts -n {NAMESPACE}"),
        ("restricted", "violates PodSecurity", f"kubectl get ns {NAMESPACE} --show-labels"),
        ("rights", f'{POWERLESS}" cannot get resource "pytorchjobs"', "kubectl auth can-i --list"),
    ],
)
def test_a_job_that_cannot_start_has_a_reason(
    cannot_start: dict[str, Running], what: str, why: str, remedy: str
) -> None:
    line, seconds = cannot_start[what].wait_for_line(why, SECONDS)
    assert remedy in line
    assert seconds <= SECONDS


@pytest.mark.parametrize("what", ["image", "secret", "forbidden", "account", "restricted", "rights"])
def test_an_unrecoverable_reason_ends_the_step(cannot_start: dict[str, Running], what: str) -> None:
    ended = cannot_start[what].end(SECONDS + 30.0)
    assert ended.code in (1, 2), ended.log


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (FORBIDDEN, "cluster.secrets: dit-mlflow-server is not in annotation dit-scaling/job-secrets"),
        ("cluster.secrets.dit-s3=[OF_NO_SUCH_KEY]", "has no OF_NO_SUCH_KEY"),
        ("cluster.replicas=3", "train.global_batch=64 is not divisible by the 3 processes"),
    ],
)
def test_the_preflight_names_the_reason_before(override: str, line: str) -> None:
    command = [sys.executable, "-m", "dit", "preflight", str(STUDY_FILE), "--root", "s3://dit-scaling"]
    done = subprocess.run([*command, "--set", override], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert line in done.stdout + done.stderr


@pytest.fixture
def no_trainjobs() -> Iterator[None]:
    """A cluster without TrainJobs; INSTALL_TRAINER is the command that installs them again."""
    if not has_crd(TRAINJOB):
        yield
        return
    if "INSTALL_TRAINER" not in os.environ:
        pytest.skip(f"the cluster has {TRAINJOB}, and INSTALL_TRAINER, which installs it, is not set")
    delete("crd", TRAINJOB, "")
    yield
    subprocess.run(os.environ["INSTALL_TRAINER"], shell=True, check=True)


@pytest.mark.usefixtures("no_trainjobs")
def test_a_missing_job_kind_is_named(site: Site) -> None:
    ended = site.study("crd", "cluster.job=trainjob").launch().end(SECONDS)
    assert ended.code == 2, ended.log
    assert "the cluster does not serve TrainJob" in ended.last_line
    assert f"kubectl get crd {TRAINJOB}" in ended.last_line
