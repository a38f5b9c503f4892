"""`dit preflight` and `dit submit`, with an S3 server and fake servers for the cluster, MLflow and pipelines."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from http_fakes import Answer, Kubernetes, PipelinesServer, Request, kubeconfig, run, serve
from s3_proxy import BUCKET, Proxy, raw

from dit.cli.commands import run as main
from pipelines import submit as submission

CONFIGS = Path(__file__).parents[3] / "configs"
JOBS, RUNS = "/api/v1/namespaces/dit-scaling", "/api/v1/namespaces/kubeflow"
QUEUES = "/apis/kueue.x-k8s.io/v1beta1"
REAPER = "/apis/apps/v1/namespaces/dit-scaling/deployments/dit-reaper"
IMAGE = "registry.example/dit@sha256:" + "0" * 64
PASSWORD = "correct horse battery"
ALLOWED = {
    "dit-scaling/job-accounts": "dit-worker",
    "dit-scaling/job-secrets": "dit-s3 dit-mlflow",
    "dit-scaling/job-config-maps": "dit-services",
    "dit-scaling/job-image-pull-secrets": "registry",
}
A100 = "NVIDIA-A100-SXM4-80GB"


@dataclass
class MLflow:
    """A server that checks host name and password."""

    name: str = ""

    def answer(self, request: Request) -> Answer:
        if request.headers["Host"] != self.name:
            return 403, "Invalid Host header - possible DNS rebinding attack detected"
        login = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
        return (200, {"experiments": []}) if request.headers["Authorization"] == f"Basic {login}" else (401, "who?")


@dataclass
class Place:
    """A cluster on which all checks pass."""

    kubernetes: Kubernetes
    mlflow: MLflow
    pipelines: PipelinesServer
    endpoint: str
    capsys: pytest.CaptureFixture[str]

    @property
    def objects(self) -> dict[str, Any]:
        return self.kubernetes.objects

    def check(self, study: str = "digits", *overrides: str, root: str = f"s3://{BUCKET}/dit") -> int:
        arguments = [str(CONFIGS / f"{study}.yaml"), "--root", root, "--endpoint", self.endpoint]
        return main(["preflight", *arguments, *(word for item in overrides for word in ("--set", item))])

    def marks(self) -> dict[str, str]:
        """Subject -> mark and text, as printed since the last call."""
        lines = [re.match(r"^([✓?✗])  (\S.*?)  +(.*)$", line) for line in self.capsys.readouterr().out.splitlines()]
        return {match[2]: f"{match[1]} {match[3]}" for match in lines if match}


def encoded(**values: str) -> dict[str, Any]:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}}


def node(name: str, gpus: int = 8, product: str = A100, **spec: Any) -> dict[str, Any]:
    offered = {"cpu": "96", "memory": "1000Gi", "ephemeral-storage": "2Ti", "nvidia.com/gpu": str(gpus)}
    return {
        "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": product}},
        "spec": spec,
        "status": {"allocatable": offered},
    }


def settings(s3: str, mlflow: str) -> dict[str, Any]:
    """Config maps and secrets, in both namespaces."""
    made = {
        "configmaps/dit-services": {
            "data": {"AWS_ENDPOINT_URL_S3": s3, "AWS_REGION": "us-east-1", "MLFLOW_TRACKING_URI": mlflow}
        },
        "secrets/dit-s3": encoded(AWS_ACCESS_KEY_ID="study", AWS_SECRET_ACCESS_KEY="secret"),
        "secrets/dit-mlflow": encoded(MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD=PASSWORD),
    }
    return {f"{namespace}/{path}": value for namespace in (JOBS, RUNS) for path, value in made.items()}


def quota(gpus: int) -> dict[str, Any]:
    amounts = {"cpu": "128", "memory": "1Ti", "ephemeral-storage": "4Ti", "nvidia.com/gpu": str(gpus)}
    resources = [{"name": name, "nominalQuota": amount} for name, amount in amounts.items()]
    return {"spec": {"resourceGroups": [{"flavors": [{"name": "a100", "resources": resources}]}]}}


@pytest.fixture
def place(
    s3_environment: None,  # noqa: ARG001
    s3_proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Place]:
    kubernetes, mlflow, pipelines = Kubernetes(), MLflow(), PipelinesServer()
    with serve(kubernetes.answer) as api, serve(mlflow.answer) as tracking, serve(pipelines.answer) as endpoint:
        mlflow.name = tracking.removeprefix("http://")
        kubernetes.objects = {
            "/version": {"gitVersion": "v1.34.4"},
            "/apis/kubeflow.org": {"versions": [{"version": "v1"}]},
            "/apis/kubeflow.org/v1": {"resources": [{"name": "pytorchjobs"}]},
            JOBS: {"metadata": {"annotations": ALLOWED}},
            RUNS: {},
            f"{JOBS}/serviceaccounts/dit-worker": {},
            f"{RUNS}/serviceaccounts/dit-launcher": {},
            f"{RUNS}/serviceaccounts/dit-step": {},
            f"{RUNS}/secrets/dit-launcher-token": encoded(**{"token": "t", "ca.crt": "c"}),
            REAPER: {"status": {"availableReplicas": 1}},
            "/api/v1/nodes": {"items": [node("one")]},
            "/apis/scheduling.k8s.io/v1/priorityclasses/dit-scaling-training": {},
            f"{QUEUES}/namespaces/dit-scaling/localqueues/dit-scaling": {"spec": {"clusterQueue": "gpus"}},
            f"{QUEUES}/clusterqueues/gpus": quota(8),
            **settings(s3_proxy.url, tracking),
        }
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", api)))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield Place(kubernetes, mlflow, pipelines, endpoint, capsys)


def test_a_study_that_can_run_passes(place: Place) -> None:
    assert place.check() == 0
    result = place.marks()
    assert {text[0] for text in result.values()} == {"✓"}
    assert len(result) > 15
    assert result["Kubeflow Pipelines"].endswith("version 2.17.0")


def test_permissions_are_checked_for_the_account_of_the_steps(place: Place) -> None:
    assert place.check() == 0
    reviewed = place.kubernetes.reviewed
    assert {item["user"].rpartition(":")[2] for item in reviewed} == {"dit-launcher", "dit-step"}
    of_step = {item["resourceAttributes"]["resource"] for item in reviewed if item["user"].endswith("dit-step")}
    assert of_step == {"workflowtaskresults"}
    assert "system:serviceaccounts:kubeflow" in reviewed[0]["groups"]
    asked = {(item["resourceAttributes"]["verb"], item["resourceAttributes"]["resource"]) for item in reviewed}
    assert {("create", "pytorchjobs"), ("delete", "pytorchjobs"), ("list", "events")} <= asked


def test_inside_the_cluster_permissions_are_checked_for_the_own_account(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert place.check() == 0
    assert not any("user" in item for item in place.kubernetes.reviewed)


Break = Callable[[Place], Any]
QUEUE = f"{QUEUES}/namespaces/dit-scaling/localqueues/dit-scaling"
STOPPED = {"status": {"conditions": [{"type": "Active", "status": "False", "message": "it is stopped"}]}}
OTHER_PASSWORD = encoded(MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD="x")


def change(path: str, value: Any = None) -> Break:
    return lambda place: place.objects.pop(path) if value is None else place.objects.update({path: value})


def deny(right: str) -> Break:
    return lambda place: place.kubernetes.denied.add(right)


@pytest.mark.parametrize(
    ("break_it", "subject", "message"),
    [
        (change("/apis/kubeflow.org/v1"), "PyTorchJob", "kubectl get crd pytorchjobs.kubeflow.org"),
        (change("/apis/kubeflow.org/v1", {"resources": [{"name": "mpijobs"}]}), "PyTorchJob", "install"),
        (change(JOBS), "namespace dit-scaling", "dit deploy kind"),
        (change(f"{JOBS}/serviceaccounts/dit-worker"), "service account dit-scaling/dit-worker", "dit deploy"),
        (change(f"{RUNS}/serviceaccounts/dit-launcher"), "service account kubeflow/dit-launcher", "dit deploy pipel"),
        (change(f"{RUNS}/serviceaccounts/dit-step"), "service account kubeflow/dit-step", "dit deploy pipel"),
        (change(f"{RUNS}/secrets/dit-launcher-token"), "secret kubeflow/dit-launcher-token", "dit deploy pipel"),
        (change(f"{RUNS}/secrets/dit-s3"), "secret kubeflow/dit-s3", "dit deploy pipelines"),
        (
            change(f"{JOBS}/secrets/dit-mlflow", encoded(MLFLOW_TRACKING_USERNAME="admin")),
            "secret dit-scaling/dit-mlflow",
            "has no MLFLOW_TRACKING_PASSWORD; kubectl describe secret -n dit-scaling dit-mlflow",
        ),
        (change(REAPER), "reaper", "dit deploy"),
        (change(REAPER, {"status": {}}), "reaper", "is not available; kubectl describe deployment"),
        (change("/api/v1/nodes", {"items": [node("one", gpus=7)]}), "GPUs", "room for 7 pods"),
        (deny("create pytorchjobs"), "rights of dit-launcher in dit-scaling", "create pytorchjobs"),
        (deny("patch workflowtaskresults"), "rights of dit-step in kubeflow", "dit deploy pipel"),
        (lambda place: setattr(place.mlflow, "name", "mlflow:5000"), "MLflow", "MLFLOW_SERVER_ALLOWED_HOSTS"),
        (change(f"{JOBS}/secrets/dit-mlflow", OTHER_PASSWORD), "MLflow", "answers 401"),
        (change(QUEUE), "queue dit-scaling", "there is no LocalQueue"),
        (change(f"{QUEUES}/clusterqueues/gpus", quota(7)), "queue dit-scaling", "nvidia.com/gpu: 8 x 1 of 7"),
        (
            change(QUEUE, {"spec": {"clusterQueue": "gpus"}, **STOPPED}),
            "queue dit-scaling",
            "not active: it is stopped",
        ),
    ],
)
def test_a_failed_check_has_a_cross_and_a_remedy(place: Place, break_it: Break, subject: str, message: str) -> None:
    break_it(place)
    queue = ["cluster.queue=dit-scaling"] if subject == "queue dit-scaling" else []
    assert place.check("digits", *queue) == 2
    result = place.marks()
    assert result[subject].startswith("✗")
    assert message in result[subject]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.service_account=dit-launcher", "cluster.service_account: dit-launcher is not in"),
        ("cluster.secrets.dit-mlflow-server=[PGPASSWORD]", "cluster.secrets: dit-mlflow-server is not in"),
        ("cluster.config_maps.mlflow=[A]", "cluster.config_maps: mlflow is not in"),
        ("cluster.image_pull_secrets=[registry, theirs]", "cluster.image_pull_secrets: theirs is not in"),
    ],
)
def test_names_that_jobs_may_not_use_are_named(place: Place, override: str, message: str) -> None:
    assert place.check("digits", override) == 2
    result = place.marks()["names that jobs may use"]
    assert result.startswith("✗")
    assert message in result
    assert "kubectl describe namespace dit-scaling" in result


def test_a_namespace_without_lists_of_names_is_a_question_mark(place: Place) -> None:
    place.objects[JOBS] = {"metadata": {}}
    assert place.check() == 0
    assert place.marks()["names that jobs may use"].startswith("? ")


def test_a_batch_that_does_not_fit_the_job_is_refused_before_any_check(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.check("digits", "cluster.replicas=3") == 2
    assert "not divisible by the 3 processes" in capsys.readouterr().err.splitlines()[-1]
    assert not place.marks()


def test_the_error_names_the_failed_checks(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    change(REAPER)(place)
    assert place.check() == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("checks failed: reaper")


def test_other_served_versions_of_the_job_kind_are_named(place: Place) -> None:
    place.objects["/apis/trainer.kubeflow.org"] = {"versions": [{"version": "v1"}, {"version": "v2"}]}
    assert place.check("digits", "cluster.job=trainjob") == 2
    assert "served only as v1, v2" in place.marks()["TrainJob"]


def test_a_bucket_that_does_not_exist_is_a_cross(place: Place) -> None:
    assert place.check(root="s3://no-such-bucket/dit") == 2
    assert "the bucket does not exist" in place.marks()["bucket"]


def test_the_bucket_is_checked_with_the_credentials_of_the_pods(
    place: Place, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "mine")
    before = dict(os.environ)
    assert place.check() == 0
    sent = [{key.lower(): value for key, value in request.headers.items()} for request in s3_proxy.seen]
    assert {item["authorization"].partition("Credential=")[2].partition("/")[0] for item in sent} == {"study"}
    assert not any("x-amz-security-token" in item for item in sent)
    assert dict(os.environ) == before


def test_what_may_not_be_read_does_not_fail_the_preflight(place: Place) -> None:
    place.kubernetes.forbidden |= {f"{JOBS}/secrets/dit-s3", "/api/v1/nodes"}
    assert place.check() == 0
    unknown = {subject for subject, text in place.marks().items() if text.startswith("?")}
    assert unknown == {"secret dit-scaling/dit-s3", "nodes", "bucket", "MLflow"}


def test_a_store_that_only_pods_reach_does_not_fail_the_preflight(place: Place) -> None:
    place.objects[f"{JOBS}/configmaps/dit-services"]["data"]["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:9"
    assert place.check() == 0
    assert "cannot be reached" in place.marks()["bucket"]


def test_an_unreachable_cluster_is_one_failed_check(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "other", "http://127.0.0.1:9")))
    assert place.check() == 2
    assert set(place.marks()) == {"Kubeflow Pipelines", "Kubernetes"}
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert place.check() == 2
    assert "set KUBECONFIG" in place.marks()["Kubernetes"]


FILES = {
    "images": ("dataset.source.path", "images/train-000.tar"),
    "autoencoder": ("dataset.codec.weights", "vae/config.json"),
    "InceptionV3": ("evaluation.extractor_weights", "inception.pth"),
    "reference": ("evaluation.reference.path", "reference.npz"),
}


def imagenet(place: Place) -> int:
    places = [f"{key}=s3://{BUCKET}/{path.partition('/')[0]}" for key, path in FILES.values()]
    return place.check("imagenet256", "dataset.source.kind=tar", *places)


@pytest.mark.parametrize("missing", [None, *FILES])
def test_input_files_of_the_study_must_be_in_the_store(place: Place, missing: str | None) -> None:
    for subject, (_, path) in FILES.items():
        if subject != missing:
            raw().put_object(Bucket=BUCKET, Key=path, Body=b"x")
    assert imagenet(place) == (2 if missing else 0)
    result = place.marks()
    crosses = {subject: text for subject, text in result.items() if text.startswith("✗")}
    assert crosses.keys() == ({missing} if missing else set())
    assert all(f"--set {FILES[subject][0]}=s3://..." in text for subject, text in crosses.items())


def test_local_paths_fail_the_preflight(place: Place) -> None:
    assert place.check("imagenet256") == 2
    assert {subject for subject, text in place.marks().items() if text.startswith("✗")} == set(FILES)


def test_a_quota_above_the_capacity_of_the_nodes_is_a_question_mark(place: Place) -> None:
    place.objects[f"{QUEUES}/clusterqueues/gpus"] = quota(32)
    imagenet(place)
    message = place.marks()["queue dit-scaling"]
    assert message.startswith("? ")
    assert f"quota is 32 nvidia.com/gpu, but nodes with {A100} have 8; lower the quota" in message
    place.kubernetes.forbidden.add("/api/v1/nodes")
    imagenet(place)
    assert place.marks()["queue dit-scaling"].startswith("✓")


def test_steps_need_disk_for_what_they_download(place: Place) -> None:
    assert place.check("digits", "cluster.steps.evaluate.scratch=3Ti") == 2
    message = place.marks()["steps"]
    assert "no node has room for evaluate" in message
    assert "3Ti ephemeral-storage" in message
    place.check("imagenet256", "cluster.steps.prepare.scratch=500Gi")
    assert place.marks()["steps"].startswith("? 8 pods of prepare may share node one")


def test_with_a_queue_missing_nodes_are_a_question_mark(place: Place) -> None:
    place.objects["/api/v1/nodes"] = {"items": [node("one", product="NVIDIA-L4")]}
    imagenet(place)
    assert place.marks()["GPUs"].startswith("?")


def test_a_local_root_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.check(root="runs") == 2
    assert "give s3://bucket/prefix" in capsys.readouterr().err


def submit(place: Place, *options: str) -> int:
    study, root = str(CONFIGS / "digits.yaml"), f"s3://{BUCKET}/dit"
    return main(["submit", study, "--root", root, "--image", IMAGE, "--endpoint", place.endpoint, *options])


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submission, "POLL_SECONDS", 0.0)
    return tmp_path


@pytest.mark.usefixtures("elsewhere")
def test_a_study_is_submitted_under_the_account_of_steps(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(place, "--experiment", "mine", "--run", "first", "--set", "train.steps=100", "--wait") == 0
    (sent,) = place.pipelines.created
    assert (sent["display_name"], sent["service_account"]) == ("first", "dit-step")
    assert place.pipelines.experiments == ["mine"]
    spec = sent["pipeline_spec"]["pipeline_spec"]
    assert spec["root"]["inputDefinitions"]["parameters"]["steps"]["defaultValue"] == 100
    executors = spec["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {IMAGE}
    printed = capsys.readouterr().out.splitlines()
    assert f"run run-1 (first) in experiment mine: {place.endpoint}/#/runs/details/run-1" in printed
    assert printed[-1].startswith("run run-1: succeeded")


@pytest.mark.usefixtures("elsewhere")
def test_nothing_is_submitted_after_a_failed_preflight(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    change(f"{RUNS}/serviceaccounts/dit-launcher")(place)
    assert submit(place) == 2
    assert "preflight: 1 of" in capsys.readouterr().err
    assert place.pipelines.created == []


@pytest.mark.usefixtures("elsewhere")
def test_the_command_fails_if_the_run_fails(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.pipelines.runs["run-1"] = [run("run-1", "RUNNING", {"a": "RUNNING"}), run("run-1", "FAILED", {"a": "FAILED"})]
    assert submit(place, "--wait") == 1
    assert "run run-1 ended FAILED at step a" in capsys.readouterr().err


def test_submitting_needs_an_endpoint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("KFP_ENDPOINT", raising=False)
    assert main(["submit"]) == 2
    assert main(["submit", str(CONFIGS / "digits.yaml"), "--root", "s3://b/d", "--image", IMAGE]) == 2
    assert "set KFP_ENDPOINT" in capsys.readouterr().err
