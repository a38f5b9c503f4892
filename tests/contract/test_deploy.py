"""`dit deploy` and `dit undeploy` against a kubectl that renders as the real one, and keeps a cluster in a file."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import every_overlay, needs_kubectl, pretend_pushed

from dit.cli.commands import run
from pipelines import deploy

pytestmark = needs_kubectl

KUBECTL = """#!{python}
import json, os, sys
from pathlib import Path
import yaml
state = Path({state!r})
arguments = sys.argv[1:]
if arguments[0] == "kustomize":
    os.execv({real!r}, ["kubectl", *arguments])
if not state.exists():
    sys.exit("The connection to the server was refused")
cluster = json.loads(state.read_text())

def kind(one):
    group, _, version = one["apiVersion"].rpartition("/")
    return ".".join([one["kind"].lower(), *([version, group] if group else [])])

def place(one):
    return [kind(one), one["metadata"].get("namespace", ""), one["metadata"]["name"]]

scope = arguments[arguments.index("-n") + 1] if "-n" in arguments else ""
selector = arguments[arguments.index("-l") + 1].split(",") if "-l" in arguments else []
labels = dict(part.split("=") for part in selector)

def there(*kinds):
    return [one for one in cluster if kind(one) in kinds and one["metadata"].get("namespace", "") == scope
            and labels.items() <= one["metadata"].get("labels", {{}}).items()]

if arguments[0] in ("apply", "create"):
    for one in filter(None, yaml.safe_load_all(sys.stdin)):
        if "stringData" in one:
            one["data"] = one.pop("stringData")
        kept = [{{"status": other["status"]}} for other in cluster if place(other) == place(one) and "status" in other]
        cluster = [other for other in cluster if place(other) != place(one)] + [{{**one, **(kept or [{{}}])[0]}}]
elif arguments[0] == "rollout":
    name = arguments[2].removeprefix("deployment/")
    if [one for one in there("pod") if one["metadata"]["labels"]["app.kubernetes.io/name"] == name] or [
        one for one in there("deployment.v1.apps") if one["metadata"]["name"] == name and "status" in one
    ]:
        sys.exit("error: timed out waiting for the condition")
elif arguments[:2] == ["get", "trainjobs.trainer.kubeflow.org"]:
    sys.exit("error: the server doesn't have a resource type 'trainjobs'")
elif arguments[:2] == ["get", "pytorchjobs.kubeflow.org"]:
    print(json.dumps({{"items": there("pytorchjob.v1.kubeflow.org")}}))
elif arguments[:2] == ["get", "pods"]:
    print(json.dumps({{"items": there("pod")}}))
elif arguments[:2] == ["get", "deployment"]:
    print(json.dumps(next(one for one in there("deployment.v1.apps") if one["metadata"]["name"] == arguments[2])))
elif arguments[0] == "get" and "--raw" not in arguments:
    for one in cluster:
        if place(one) == [arguments[1].lower(), scope, arguments[2]]:
            print(yaml.safe_dump(one))
elif arguments[0] == "delete":
    going = there(*arguments[1].split(","))
    if held := [one for one in going if "finalizers" in one["metadata"]]:
        sys.exit(f"error: timed out waiting for the condition on {{kind(held[0])}}/{{held[0]['metadata']['name']}}")
    cluster = [one for one in cluster if one not in going]
elif arguments[0] != "get":
    sys.exit(f"unexpected: {{arguments}}")
state.write_text(json.dumps(cluster))
"""
Cluster = list[dict[str, Any]]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an empty cluster, which kubectl on PATH reads and writes."""
    real = shutil.which("kubectl")
    state, program = tmp_path / "cluster.json", tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, state=str(state), real=real))
    program.chmod(0o755)
    state.write_text("[]")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    build = pretend_pushed(tmp_path / "build")
    monkeypatch.setattr(deploy.render, "__defaults__", (build,))
    return state


def places(cluster: Cluster) -> set[tuple[str, str, str]]:
    return {(one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]) for one in cluster}


def read(state: Path) -> Cluster:
    found: Cluster = json.loads(state.read_text())
    return found


def give_secrets(state: Path, overlay: str) -> None:
    needed = deploy.required_secrets(deploy.render(overlay)).items()
    made = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "data": dict.fromkeys(keys, "c2VjcmV0"),
        }
        for (namespace, name), keys in needed
    ]
    add(state, *made)


def add(state: Path, *objects: dict[str, Any]) -> None:
    state.write_text(json.dumps(read(state) + list(objects)))


def settings_of_jobs(kind: str, name: str) -> dict[str, Any]:
    """What overlay kind or a100 makes."""
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "dit-scaling"},
        "data": {"K": name},
    }


def settings_of_runs(overlay: str) -> set[tuple[str, str, str]]:
    """What overlay pipelines copies to where runs are."""
    return {(kind, "kubeflow", name) for kind, name in deploy.SETTINGS} if overlay == "pipelines" else set()


@every_overlay
def test_undeploy_removes_what_deploy_made_and_nothing_else(overlay: str, state: Path) -> None:
    objects = deploy.render(overlay)
    strangers = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs", "namespace": namespace}}
        for namespace in ("dit-scaling", "kubeflow")
    ]
    strangers += [] if overlay != "pipelines" else [settings_of_jobs(kind, name) for kind, name in deploy.SETTINGS]
    strangers.append({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "theirs"}})
    state.write_text(json.dumps(strangers))
    give_secrets(state, overlay)
    before = places(read(state))
    assert run(["deploy", overlay]) == 0
    assert places(read(state)) == before | places(objects) | settings_of_runs(overlay)
    assert run(["undeploy", overlay]) == 0
    kept = {place for place in places(objects) if place[0] in {"Namespace", "PersistentVolumeClaim"}}
    assert places(read(state)) == before | kept


def test_undeploy_removes_what_an_earlier_deploy_left(state: Path) -> None:
    """Config maps carry a hash of their content in their names; a changed setting leaves the old one behind."""
    deploy.create_secrets("kind")
    deploy.deploy("kind")
    cluster = read(state)
    old = next(one for one in cluster if one["kind"] == "ConfigMap")
    renamed = {**old, "metadata": {**old["metadata"], "name": "mlflow-of-before"}}
    state.write_text(json.dumps([*cluster, renamed]))
    deploy.undeploy("kind")
    assert not [one for one in read(state) if one["kind"] == "ConfigMap"]


def test_undeploy_needs_no_images(state: Path) -> None:
    give_secrets(state, "kind")
    deploy.deploy("kind")
    for file in deploy.IMAGES.values():
        (state.parent / "build" / file).unlink()
    assert run(["undeploy", "kind"]) == 0
    assert {one["kind"] for one in read(state)} == {"Namespace", "PersistentVolumeClaim", "Secret"}


@every_overlay
def test_undeploy_takes_nothing_from_under_a_job(overlay: str, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def job(name: str, *conditions: str) -> dict[str, Any]:
        labels = {"app.kubernetes.io/name": "dit-scaling", "app.kubernetes.io/component": "job"}
        return {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"name": name, "namespace": "dit-scaling", "labels": labels},
            "status": {"conditions": [{"type": one, "status": "True"} for one in conditions]},
        }

    add(state, job("old", "Succeeded"), job("one", "Running"), job("other", "Suspended"), job("bad", "Failed"))
    before = read(state)
    assert run(["undeploy", overlay]) == 2
    error = capsys.readouterr().err
    assert "jobs in namespace dit-scaling have not ended: one, other; end" in error
    assert "kubectl delete pytorchjobs.kubeflow.org -n dit-scaling NAME" in error
    assert error.count("\n") == 1
    assert read(state) == before


def test_a_queue_with_jobs_of_others_in_it_is_not_waited_for(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {
        "name": "dit-scaling",
        "labels": {deploy.LABEL: "a100"},
        "finalizers": ["kueue.x-k8s.io/resource-in-use"],
    }
    add(state, {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "ClusterQueue", "metadata": metadata})
    assert run(["undeploy", "a100"]) == 1
    error = capsys.readouterr().err
    assert "timed out waiting for the condition on clusterqueue.v1beta1.kueue.x-k8s.io/dit-scaling" in error
    assert "kubectl get workloads -A" in error
    assert error.count("\n") == 1


def test_secrets_are_random_complete_and_never_made_twice(state: Path) -> None:
    assert run(["secrets", "kind"]) == 0
    first = [one for one in read(state) if one["kind"] == "Secret"]
    assert run(["secrets", "kind"]) == 0
    assert [one for one in read(state) if one["kind"] == "Secret"] == first
    values = {(one["metadata"]["namespace"], one["metadata"]["name"]): one["data"] for one in first}
    assert values["dit-scaling", "dit-mlflow"].pop("MLFLOW_TRACKING_USERNAME") == "admin"
    secrets = [value for (space, _), data in values.items() if space == "dit-scaling" for value in data.values()]
    assert len(set(secrets)) == len(secrets) == 4
    assert all(len(value) >= 32 for value in secrets)


def test_steps_of_runs_read_the_settings_that_jobs_read(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["deploy", "pipelines"]) == 2
    assert "dit deploy kind" in capsys.readouterr().err
    deploy.create_secrets("kind")
    deploy.deploy("kind")
    assert run(["deploy", "pipelines"]) == 0
    data = {place: one.get("data") for one in read(state) for place in places([one])}
    for kind, name in deploy.SETTINGS:
        assert data[kind, "kubeflow", name] == data[kind, "dit-scaling", name]
        assert data[kind, "kubeflow", name]


def test_deploy_without_secrets_names_them_and_applies_no_pod(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["deploy", "a100"]) == 2
    error = capsys.readouterr().err
    assert "dit-mlflow-server in namespace dit-scaling" in error
    assert "docs/cluster.md" in error
    assert error.count("\n") == 1
    assert {kind for kind, _, _ in places(read(state))} == {"Namespace"}


def test_a_key_that_a_secret_lacks_is_named(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give_secrets(state, "a100")
    cluster = read(state)
    for one in cluster:
        if one["metadata"]["name"] == "dit-mlflow-server":
            one["data"]["PGPASSWORD"] = ""
            del one["data"]["MLFLOW_FLASK_SERVER_SECRET_KEY"]
    state.write_text(json.dumps(cluster))
    assert run(["deploy", "a100"]) == 2
    error = capsys.readouterr().err
    assert "MLFLOW_FLASK_SERVER_SECRET_KEY, PGPASSWORD of secret dit-mlflow-server in namespace dit-scaling" in error
    assert "docs/cluster.md" in error
    assert error.count("\n") == 1


def pod(name: str, state: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """One of mlflow's, whose container is in this state."""
    containers = [{"name": "mlflow", "ready": False, "state": state, **more.pop("container", {})}] if state else []
    labels = {"app.kubernetes.io/name": "mlflow"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "dit-scaling", "labels": labels, **more.pop("metadata", {})},
        "status": {"containerStatuses": containers, **more},
    }


BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}}
NO_IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "r.example/x"'}}
NO_KEY = {"waiting": {"reason": "CreateContainerConfigError", "message": "couldn't find key K in Secret s"}}
KILLED = {"lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "restartCount": 3}
NO_ROOM = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient memory."}
READY = {"type": "Ready", "status": "True"}


@pytest.mark.parametrize(
    ("stuck", "said"),
    [
        (
            pod("a", NO_IMAGE),
            'pod a: ImagePullBackOff: Back-off pulling image "r.example/x"; kubectl describe pod -n dit-scaling a'
            " (docs/cluster.md, Private registries)",
        ),
        (
            pod("a", NO_KEY),
            "pod a: CreateContainerConfigError: couldn't find key K in Secret s; kubectl describe pod -n dit-scaling a",
        ),
        (
            pod("a", BACK_OFF, container=KILLED),
            "pod a ends with exit code 137, OOMKilled, 3 restarts; kubectl logs -n dit-scaling a -c mlflow --previous",
        ),
        (
            pod("a", {"terminated": {"exitCode": 1, "reason": "Error"}}),
            "pod a ends with exit code 1, 0 restarts; kubectl logs -n dit-scaling a -c mlflow",
        ),
        (
            pod("a", conditions=[NO_ROOM]),
            "pod a finds no node: 0/1 nodes: Insufficient memory.; kubectl describe pod -n dit-scaling a",
        ),
        (pod("a", {"running": {}}), "pod a runs and is not ready; kubectl logs -n dit-scaling a -c mlflow"),
        (
            pod(
                "a",
                {"waiting": {"reason": "PodInitializing"}},
                initContainerStatuses=[{"name": "first", "ready": False, "state": {"running": {}}}],
            ),
            "pod a runs and is not ready; kubectl logs -n dit-scaling a -c first",
        ),
    ],
)
def test_what_does_not_come_up_says_why(
    stuck: dict[str, Any],
    said: str,
    state: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deploy.rollout, "PATIENCE_SECONDS", 0)
    give_secrets(state, "kind")
    add(state, stuck, pod("old", BACK_OFF, metadata={"deletionTimestamp": "2026"}), pod("up", conditions=[READY]))
    assert run(["deploy", "kind"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"dit: deployment dit-scaling/mlflow is not up: {said}"


def test_what_waiting_does_not_mend_is_said_before_time_is_up(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give_secrets(state, "kind")
    add(state, pod("a", NO_IMAGE))
    assert run(["deploy", "kind"]) == 1
    assert "ImagePullBackOff" in capsys.readouterr().err


def test_a_deployment_without_a_pod_says_why(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.rollout, "PATIENCE_SECONDS", 0)
    give_secrets(state, "kind")
    refused = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: pods"}
    metadata = {"name": "mlflow", "namespace": "dit-scaling"}
    status = {"conditions": [refused]}
    add(state, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "status": status})
    assert run(["deploy", "kind"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("no pod is made: exceeded quota: pods; kubectl describe deployment -n dit-scaling mlflow")


def test_secrets_of_services_that_exist_are_not_invented(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["secrets", "a100"]) == 2
    assert "dit-mlflow-server in namespace dit-scaling" in capsys.readouterr().err
    assert not [one for one in read(state) if one["kind"] == "Secret"]


def test_no_cluster_no_image_and_no_overlay_are_one_line_each(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state.unlink()
    assert run(["deploy", "kind"]) == 2
    assert "set KUBECONFIG" in capsys.readouterr().err
    (state.parent / "build" / "image.digest").unlink()
    assert run(["deploy", "kind"]) == 2
    assert "make build push" in capsys.readouterr().err
    assert run(["deploy", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert "kind" in error
    assert error.count("\n") == 1


def test_the_written_kustomization_renders_by_itself(state: Path) -> None:
    deploy.render("kind")
    written = state.parent / "build" / "deploy" / "kind" / "kustomization.yaml"
    assert yaml.safe_load(written.read_text())["labels"] == [{"pairs": {deploy.LABEL: "kind"}}]
