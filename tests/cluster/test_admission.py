"""The API server refuses job pods that name what is not theirs, and deletions by the reaper of what is not a job's."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from kube import NAMESPACE, OURS, SESSION, Refused, apply, delete, find, kubectl, until
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient
from studies import STUDY_FILE, Site

from pipelines.deploy import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
OWNER = {
    "apiVersion": "kubeflow.org/v1",
    "kind": "PyTorchJob",
    "name": "none",
    "uid": "00000000-0000-0000-0000-000000000000",
}


@cache
def rendered(kind: str = "pytorchjob") -> dict[str, Any]:
    """The pod of a training job."""
    command = [sys.executable, "-m", "dit", "render", str(STUDY_FILE), "--root", "s3://dit-scaling"]
    command += [
        "--variant",
        "mini-S/2",
        "--image",
        f"none.invalid/none@sha256:{'0' * 64}",
        "--set",
        f"cluster.job={kind}",
    ]
    documents = yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    template: dict[str, Any] = next(filter(None, map(pod_template, documents)))
    return {"restartPolicy": "Never", **template["spec"]}


def pod_template(document: Any) -> Any:
    """The first pod template in a manifest; None if it has none."""
    if isinstance(document, list):
        return next(filter(None, map(pod_template, document)), None)
    if not isinstance(document, dict):
        return None
    if "containers" in document.get("template", {}).get("spec", {}):
        return document["template"]
    return pod_template(list(document.values()))


def pod(spec: dict[str, Any], labels: dict[str, str] | None = None) -> str:
    metadata = {"name": f"pod-{SESSION}", "namespace": NAMESPACE, "labels": {**OURS, **(labels or {})}}
    return yaml.safe_dump(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {**metadata, "ownerReferences": [OWNER]}, "spec": spec}
    )


def variable(name: str, secret: str) -> Callable[[dict[str, Any]], None]:
    source = {"secretKeyRef": {"name": secret, "key": "K"}}
    return lambda spec: spec["containers"][0]["env"].append({"name": name, "valueFrom": source})


def attack() -> dict[str, Any]:
    """A pod that reads the server's secret."""
    spec = copy.deepcopy(rendered())
    variable("K", "dit-mlflow-server")(spec)
    return spec


POLICY = "dit-scaling-job-pods"
ATTACKS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "the launcher's account": (
        lambda spec: spec.update(serviceAccountName="dit-launcher"),
        "dit-launcher is not for jobs",
    ),
    "no account": (lambda spec: spec.pop("serviceAccountName"), "account default is not for jobs"),
    "a token": (lambda spec: spec.update(automountServiceAccountToken=True), "must not mount its account's token"),
    "the server's secret": (variable("K", "dit-mlflow-server"), "only the secrets that annotation"),
    "a whole secret": (
        lambda spec: spec["containers"][0].update(envFrom=[{"secretRef": {"name": "dit-mlflow-server"}}]),
        "only the secrets that annotation",
    ),
    "a secret of an init container": (
        lambda spec: spec.update(
            initContainers=[{**spec["containers"][0], "name": "first", "envFrom": [{"secretRef": {"name": "theirs"}}]}]
        ),
        "only the secrets that annotation",
    ),
    "a secret as a volume": (
        lambda spec: spec["volumes"].append({"name": "s", "secret": {"secretName": "dit-mlflow-server"}}),
        "only emptyDir and downwardAPI volumes",
    ),
    "a token as a volume": (
        lambda spec: spec["volumes"].append(
            {"name": "s", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
        ),
        "must not mount its account's token",
    ),
    "a server's volume claim": (
        lambda spec: spec["volumes"].append({"name": "s", "persistentVolumeClaim": {"claimName": "mlflow"}}),
        "only emptyDir and downwardAPI volumes",
    ),
    "a config map": (
        lambda spec: spec["containers"][0].update(envFrom=[{"configMapRef": {"name": "mlflow"}}]),
        "only the config maps that annotation",
    ),
    "LD_PRELOAD": (
        lambda spec: spec["containers"][0]["env"].append({"name": "LD_PRELOAD", "value": "/tmp/x.so"}),
        "a variable that loads code",
    ),
    "a pull secret": (lambda spec: spec.update(imagePullSecrets=[{"name": "theirs"}]), "only the image pull secrets"),
    "other names": (
        lambda spec: spec.update(hostAliases=[{"ip": "127.0.0.1", "hostnames": ["mlflow"]}]),
        "must not change how names are resolved",
    ),
}


@pytest.mark.parametrize("what", ATTACKS)
def test_a_job_pod_that_names_what_is_not_its_own_is_refused(what: str) -> None:
    change, reason = ATTACKS[what]
    spec = copy.deepcopy(rendered())
    change(spec)
    with pytest.raises(Refused, match=reason):
        kubectl("create", "--dry-run=server", "-f", "-", stdin=pod(spec))


@pytest.mark.parametrize("kind", ["pytorchjob", "trainjob"])
def test_the_pods_of_jobs_are_accepted(kind: str) -> None:
    assert "created" in kubectl("create", "--dry-run=server", "-f", "-", stdin=pod(rendered(kind)))


def test_a_job_pod_with_the_label_of_a_launcher_is_refused() -> None:
    with pytest.raises(Refused, match="label of a launcher"):
        kubectl(
            "create", "--dry-run=server", "-f", "-", stdin=pod(rendered(), {"app.kubernetes.io/name": "dit-launcher"})
        )


def test_the_operator_cannot_create_the_pods_of_an_attack() -> None:
    name = f"attack-{SESSION}"
    template = {
        "metadata": {"labels": OURS},
        "spec": {key: value for key, value in attack().items() if key != "restartPolicy"},
    }
    replicas = {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}}
    apply(
        {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": OURS},
            "spec": {"pytorchReplicaSpecs": replicas},
        }
    )
    try:
        events = ("get", "events", "-n", NAMESPACE, "--field-selector", f"involvedObject.name={name}", "-o", "yaml")
        until("a refusal", lambda: "only the secrets that annotation" in kubectl(*events), 60)
        assert not find("pods", f"training.kubeflow.org/job-name={name}")
    finally:
        delete("pytorchjobs.kubeflow.org", name)


def test_the_policy_holds_after_it_was_removed_and_deployed_again() -> None:
    names = [f"validatingadmissionpolicybinding/{POLICY}", f"validatingadmissionpolicy/{POLICY}"]
    kubectl("delete", *names)
    until("it is gone", lambda: "created" in kubectl("create", "--dry-run=server", "-f", "-", stdin=pod(attack())), 30)
    subprocess.run([sys.executable, "-m", "dit", "deploy", "kind"], cwd=ROOT, check=True)

    def refused() -> bool:
        try:
            kubectl("create", "--dry-run=server", "-f", "-", stdin=pod(attack()))
        except Refused as error:
            return "only the secrets that annotation" in str(error)
        return False

    until("the attack is refused", refused, 30)
    assert "created" in kubectl("create", "--dry-run=server", "-f", "-", stdin=pod(rendered()))


def test_the_reaper_deletes_only_jobs_and_their_pods() -> None:
    reaper = ("--as", f"system:serviceaccount:{NAMESPACE}:dit-reaper", "-n", NAMESPACE)
    name, selector = f"bystander-{SESSION}", f"dit-scaling/bystander={SESSION}"
    spec = {**rendered(), "automountServiceAccountToken": False}
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {**OURS, "dit-scaling/bystander": SESSION}}
    apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    try:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={selector}"
        with pytest.raises(Refused, match="may delete only jobs of this project and pods of jobs"):
            kubectl("delete", "--raw", path, *reaper)
        assert find("pods", selector)
        kubectl("label", "pod", name, "-n", NAMESPACE, "training.kubeflow.org/job-name=gone")
        kubectl("delete", "--raw", path, *reaper)
    finally:
        delete("pod", name)


def test_jobs_may_not_administer_the_servers(site: Site) -> None:
    client = MlflowClient(tracking_uri=site.mlflow)
    with pytest.raises(MlflowException, match=r"403|Permission denied"):
        AuthServiceClient(site.mlflow).update_user_admin(os.environ["MLFLOW_TRACKING_USERNAME"], True)
    experiment = client.create_experiment(f"test-{SESSION}")
    client.delete_experiment(experiment)
    s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])
    for call in (
        lambda: s3.create_bucket(Bucket=f"test-{SESSION}"),
        lambda: s3.delete_bucket(Bucket="dit-scaling"),
        lambda: s3.put_bucket_policy(Bucket="dit-scaling", Policy='{"Statement": []}'),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            call()
