"""Trainings that would work against each other are refused, and a rank that holds up the others is named."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from apart import Apart
from kube import NAMESPACE, delete, get, kubectl
from studies import STUDY_FILE, Site, Study

from pipelines.jobs import names

PYTORCHJOB = "pytorchjobs.kubeflow.org"
ENDLESS = ("train.steps=100000", "evaluation.at_steps=[100000]", "fit.checkpoint_every=20")
TEMPLATE = "/spec/pytorchReplicaSpecs/Worker/template/metadata/annotations/"
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), pytest.mark.usefixtures("dataset")]


def test_a_second_launcher_in_another_namespace_is_refused_with_the_holders_name(site: Site) -> None:
    study = site.study("twice", *ENDLESS, "cluster.replicas=1")
    study.launch()
    study.past(20)
    with Apart.with_the_deployed_services("second") as second:
        elsewhere = Study(site, (*study.overrides, f"cluster.namespace={second.namespace}"))
        command = ["dit", "launch", *elsewhere.settings, "--variant", "mini-S/2", "--image", site.image]
        ended = second.pod("launcher", site.image, command).end(400)
    assert ended.code == 3
    assert f"the training of mini-S/2 is under way: job {NAMESPACE}/{study.job()}, process " in ended.last_line
    assert "every further try would end alike" in ended.last_line
    # The first one goes on.
    study.past(study.newest_checkpoint() + 20)
    delete(PYTORCHJOB, study.job())


def test_a_rank_whose_study_was_edited_ends_the_job_at_once_and_is_named(site: Site) -> None:
    study = site.study("edited", *ENDLESS, "cluster.replicas=2")
    launcher = study.launch()
    study.past(20)
    job = get(PYTORCHJOB, study.job())
    assert job is not None
    template = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    edited = yaml.safe_load(template["metadata"]["annotations"][names.STUDY_FILE])
    edited["train"]["learning_rate"] *= 4
    change = {"op": "replace", "path": TEMPLATE + names.STUDY_FILE.replace("/", "~1"), "value": yaml.safe_dump(edited)}
    kubectl("patch", PYTORCHJOB, study.job(), "-n", NAMESPACE, "--type=json", "-p", json.dumps([change]))
    # The operator creates the pod again, with the edited study.
    delete("pod", f"{study.job()}-worker-1")
    ended = launcher.end(300)
    assert ended.code == 3
    assert "every further try would end alike" in ended.last_line
    assert "rank 1 has train.learning_rate=" in ended.last_line
    # One exit of each pod, and at most one more until the job was deleted.
    assert 1 <= ended.log.count("ended: exit code 3") <= 4
    assert get(PYTORCHJOB, study.job()) is None


@pytest.mark.long
def test_a_rank_that_holds_up_the_others_is_named_by_launcher_and_status(site: Site) -> None:
    study = site.study("straggler", *ENDLESS, "cluster.replicas=2")
    launcher = study.launch()
    study.past(20)
    slow = f"{study.job()}-worker-1"
    # Above the request: a resize must not change the pod's class of service.
    limit = {
        "spec": {
            "containers": [{"name": "pytorch", "resources": {"requests": {"cpu": "20m"}, "limits": {"cpu": "30m"}}}]
        }
    }
    kubectl("patch", "pod", slow, "-n", NAMESPACE, "--subresource=resize", "-p", json.dumps(limit))
    line = launcher.says("holds up the others", 400)
    assert f" on {slow} holds up the others" in line
    command = [sys.executable, "-m", "dit", "status", str(STUDY_FILE), "--root", site.root]
    command += [word for override in study.overrides for word in ("--set", override)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f" on {slow}" in next(line for line in shown.splitlines() if "the others wait for rank" in line)
    delete(PYTORCHJOB, study.job())
