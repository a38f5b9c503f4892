"""`dit deploy` and `dit undeploy` with a fake kubectl, which keeps its cluster in a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fake_kubectl
import pytest
import yaml
from manifests import every_overlay, needs_kubectl, pretend_pushed

from dit.cli.commands import run as command
from pipelines import deploy

pytestmark = needs_kubectl

Cluster = list[dict[str, Any]]
SERVICES = "dit-scaling-services"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an empty cluster of the fake kubectl."""
    state = tmp_path / "cluster.json"
    fake_kubectl.install(tmp_path / "bin", state, monkeypatch)
    state.write_text("[]")
    pretend_pushed(tmp_path / "build")
    return state


def build(state: Path) -> Path:
    return state.parent / "build"


def run(state: Path, *arguments: str) -> int:
    return command([*arguments, "--build", str(build(state))])


def refused(state: Path, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one line that the command fails with."""
    assert run(state, *arguments) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def made(kind: str, name: str, namespace: str = "dit-scaling", version: str = "v1", **fields: Any) -> dict[str, Any]:
    """An object; `metadata` may have further fields."""
    metadata = {"name": name, "namespace": namespace, **fields.pop("metadata", {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}


def places(cluster: Cluster) -> set[tuple[str, str, str]]:
    return {(entry["kind"], entry["metadata"].get("namespace", ""), entry["metadata"]["name"]) for entry in cluster}


def read(state: Path) -> Cluster:
    result: Cluster = json.loads(state.read_text())
    return result


def give_secrets(state: Path, overlay: str) -> None:
    needed = deploy.required_secrets(deploy.render(overlay, build(state))).items()
    add(state, *(made("Secret", *reversed(place), data=dict.fromkeys(keys, "c2VjcmV0")) for place, keys in needed))


def add(state: Path, *objects: dict[str, Any]) -> None:
    state.write_text(json.dumps(read(state) + list(objects)))


def copied_settings(overlay: str) -> set[tuple[str, str, str]]:
    """Copies of the settings for jobs, or for runs."""
    namespace = "kubeflow" if overlay == "pipelines" else "dit-scaling"
    return {(kind, namespace, name) for kind, name in deploy.SETTINGS}


@every_overlay
def test_undeploy_removes_exactly_the_deployed_objects(overlay: str, state: Path) -> None:
    objects = deploy.render(overlay, build(state))
    strangers = [made("ConfigMap", "theirs", namespace) for namespace in ("dit-scaling", "kubeflow")]
    if overlay == "pipelines":
        strangers += [made(kind, name, SERVICES, data={"K": name}) for kind, name in deploy.SETTINGS]
    strangers.append({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "theirs"}})
    state.write_text(json.dumps(strangers))
    give_secrets(state, overlay)
    before = places(read(state))
    assert run(state, "deploy", overlay) == 0
    assert places(read(state)) == before | places(objects) | copied_settings(overlay)
    assert run(state, "undeploy", overlay) == 0
    kept = {place for place in places(objects) if place[0] in {"Namespace", "PersistentVolumeClaim"}}
    assert places(read(state)) == before | kept


def test_undeploy_removes_objects_of_an_earlier_deployment(state: Path) -> None:
    """A changed config map has another hash in its name, so the old one remains."""
    deploy.create_secrets("kind", build(state))
    deploy.deploy("kind", build=build(state))
    cluster = read(state)
    old = next(entry for entry in cluster if entry["kind"] == "ConfigMap")
    renamed = {**old, "metadata": {**old["metadata"], "name": "mlflow-of-before"}}
    state.write_text(json.dumps([*cluster, renamed]))
    deploy.undeploy("kind", build(state))
    assert not [entry for entry in read(state) if entry["kind"] == "ConfigMap"]


def test_undeploy_needs_no_images(state: Path) -> None:
    give_secrets(state, "kind")
    deploy.deploy("kind", build=build(state))
    for file in deploy.IMAGES.values():
        (build(state) / file).unlink()
    assert run(state, "undeploy", "kind") == 0
    assert {entry["kind"] for entry in read(state)} == {"Namespace", "PersistentVolumeClaim", "Secret"}


@every_overlay
def test_undeploy_is_refused_while_jobs_are_running(
    overlay: str, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(name: str, *conditions: str) -> dict[str, Any]:
        labels = {"app.kubernetes.io/name": "dit-scaling", "app.kubernetes.io/component": "job"}
        status = {"conditions": [{"type": entry, "status": "True"} for entry in conditions]}
        return made("PyTorchJob", name, version="kubeflow.org/v1", metadata={"labels": labels}, status=status)

    add(state, job("old", "Succeeded"), job("one", "Running"), job("other", "Suspended"), job("bad", "Failed"))
    before = read(state)
    error = refused(state, capsys, "undeploy", overlay)
    assert "jobs in namespace dit-scaling have not ended: one, other; end" in error
    assert "kubectl delete pytorchjobs.kubeflow.org -n dit-scaling NAME" in error
    assert read(state) == before


def test_undeploy_fails_if_a_queue_still_has_jobs(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = {"labels": {deploy.LABEL: "a100"}, "finalizers": ["kueue.x-k8s.io/resource-in-use"]}
    metadata = {"name": "dit-scaling", **held}
    add(state, {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "ClusterQueue", "metadata": metadata})
    error = refused(state, capsys, "undeploy", "a100", code=1)
    assert "timed out waiting for the condition on clusterqueue.v1beta1.kueue.x-k8s.io/dit-scaling" in error
    assert "kubectl get workloads -A" in error


def test_secrets_are_random_complete_and_created_once(state: Path) -> None:
    assert run(state, "secrets", "kind") == 0
    first = [entry for entry in read(state) if entry["kind"] == "Secret"]
    assert run(state, "secrets", "kind") == 0
    assert [entry for entry in read(state) if entry["kind"] == "Secret"] == first
    values = {(entry["metadata"]["namespace"], entry["metadata"]["name"]): entry["data"] for entry in first}
    assert values[SERVICES, "dit-mlflow"].pop("MLFLOW_TRACKING_USERNAME") == "dit"
    assert values[SERVICES, "dit-mlflow-server"].pop("MLFLOW_AUTH_ADMIN_USERNAME") == "admin"
    secrets = [value for (space, _), data in values.items() if space == SERVICES for value in data.values()]
    assert len(set(secrets)) == len(secrets) == 7
    assert all(len(value) >= 32 for value in secrets)


def test_jobs_and_steps_read_the_settings_of_the_services(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(state, "deploy", "pipelines") == 2
    assert "dit deploy kind" in capsys.readouterr().err
    deploy.create_secrets("kind", build(state))
    deploy.deploy("kind", build=build(state))
    assert run(state, "deploy", "pipelines") == 0
    data = {place: entry.get("data") for entry in read(state) for place in places([entry])}
    for kind, name in deploy.SETTINGS:
        copies = [data[kind, namespace, name] for namespace in ("dit-scaling", "kubeflow")]
        assert copies == [data[kind, "dit-scaling-services", name]] * 2
        assert data[kind, "kubeflow", name]


def test_deploy_without_secrets_names_them_and_applies_no_pod(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(state, capsys, "deploy", "a100")
    assert f"dit-mlflow-server in namespace {SERVICES}" in error
    assert "docs/cluster.md" in error
    assert {kind for kind, _, _ in places(read(state))} == {"Namespace"}


def test_a_key_that_a_secret_lacks_is_named(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give_secrets(state, "a100")
    cluster = read(state)
    for entry in cluster:
        if entry["metadata"]["name"] == "dit-mlflow-server":
            entry["data"]["PGPASSWORD"] = ""
            del entry["data"]["MLFLOW_FLASK_SERVER_SECRET_KEY"]
    state.write_text(json.dumps(cluster))
    error = refused(state, capsys, "deploy", "a100")
    assert f"MLFLOW_FLASK_SERVER_SECRET_KEY, PGPASSWORD of secret dit-mlflow-server in namespace {SERVICES}" in error
    assert "docs/cluster.md" in error


def pod(name: str, state: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A pod of MLflow with a container in this state."""
    containers = (
        [{"name": "mlflow", "image": "r.example/x", "ready": False, "state": state, **more.pop("container", {})}]
        if state
        else []
    )
    metadata = {"labels": {"app.kubernetes.io/name": "mlflow"}, **more.pop("metadata", {})}
    return made("Pod", name, SERVICES, metadata=metadata, status={"containerStatuses": containers, **more})


BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}}
NO_IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "r.example/x"'}}
NO_KEY = {"waiting": {"reason": "CreateContainerConfigError", "message": "couldn't find key K in Secret s"}}
KILLED = {"lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "restartCount": 3}
NO_ROOM = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient memory."}
READY = {"type": "Ready", "status": "True"}


@pytest.mark.parametrize(
    ("stuck", "message"),
    [
        (
            pod("a", NO_IMAGE),
            'pod dit-scaling-services/a cannot pull r.example/x: Back-off pulling image "r.example/x"; push the'
            " image, or correct its name or pull secret (docs/cluster.md, Private registries)",
        ),
        (
            pod("a", NO_KEY),
            "pod dit-scaling-services/a cannot start its container: couldn't find key K in Secret s;"
            " kubectl get secrets -n dit-scaling-services; kubectl describe pod -n dit-scaling-services a",
        ),
        (
            pod("a", BACK_OFF, container=KILLED),
            "pod dit-scaling-services/a ends with exit code 137, OOMKilled, 3 restarts;"
            " kubectl logs -n dit-scaling-services a -c mlflow --previous",
        ),
        (
            pod("a", {"terminated": {"exitCode": 1, "reason": "Error"}}),
            "pod dit-scaling-services/a ends with exit code 1, 0 restarts;"
            " kubectl logs -n dit-scaling-services a -c mlflow",
        ),
        (
            pod("a", conditions=[NO_ROOM]),
            "pod dit-scaling-services/a finds no node: 0/1 nodes: Insufficient memory.;"
            " it waits for a free node: kubectl describe nodes",
        ),
        (
            pod("a", {"running": {}}),
            "pod dit-scaling-services/a runs but is not ready; kubectl logs -n dit-scaling-services a -c mlflow",
        ),
        (
            pod(
                "a",
                {"waiting": {"reason": "PodInitializing"}},
                initContainerStatuses=[{"name": "first", "ready": False, "state": {"running": {}}}],
            ),
            "pod dit-scaling-services/a runs but is not ready; kubectl logs -n dit-scaling-services a -c first",
        ),
    ],
)
def test_a_deployment_that_is_not_ready_has_a_reason(
    stuck: dict[str, Any],
    message: str,
    state: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deploy.rollout, "TIMEOUT_SECONDS", 0)
    give_secrets(state, "kind")
    add(state, stuck, pod("old", BACK_OFF, metadata={"deletionTimestamp": "2026"}), pod("up", conditions=[READY]))
    assert run(state, "deploy", "kind") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"dit: deployment dit-scaling-services/mlflow is not up: {message}"


def test_an_unrecoverable_deployment_fails_before_the_timeout(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give_secrets(state, "kind")
    add(state, pod("a", NO_IMAGE))
    assert run(state, "deploy", "kind") == 1
    assert "cannot pull r.example/x" in capsys.readouterr().err


def test_a_deployment_without_pods_has_a_reason(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.rollout, "TIMEOUT_SECONDS", 0)
    give_secrets(state, "kind")
    condition = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: pods"}
    add(state, made("Deployment", "mlflow", SERVICES, version="apps/v1", status={"conditions": [condition]}))
    assert run(state, "deploy", "kind") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(
        "no pod was created: exceeded quota: pods; kubectl describe deployment -n dit-scaling-services mlflow"
    )


def test_an_image_by_tag_is_refused_except_on_one_machine(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("k8s", "mlflow"):
        shutil.copytree(deploy.ROOT / folder, tmp_path / folder)
    overlay = tmp_path / "k8s" / "overlays" / "mine"
    shutil.copytree(overlay.with_name("kind"), overlay)
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    assert "image ghcr.io/versity/versitygw:v1.8.0: a tag may mean" in refused(state, capsys, "deploy", "mine")
    # Without an entry of its own, an overlay has the digest of the component.
    file = overlay / "kustomization.yaml"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "versitygw" not in line))
    assert "missing secret" in refused(state, capsys, "deploy", "mine")
    assert not [entry for entry in read(state) if entry["kind"] == "Deployment"]


def test_secrets_of_existing_services_are_not_random(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(state, "secrets", "a100") == 2
    assert "dit-mlflow-server in namespace dit-scaling-services" in capsys.readouterr().err
    assert not [entry for entry in read(state) if entry["kind"] == "Secret"]


def test_a_missing_cluster_image_or_overlay_is_a_one_line_error(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state.unlink()
    assert "set KUBECONFIG" in refused(state, capsys, "deploy", "kind")
    (build(state) / "image.digest").unlink()
    assert "make build push" in refused(state, capsys, "deploy", "kind")
    assert "kind" in refused(state, capsys, "deploy", "nowhere")


def test_the_written_kustomization_renders_by_itself(state: Path) -> None:
    deploy.render("kind", build(state))
    written = build(state) / "deploy" / "kind" / "kustomization.yaml"
    assert yaml.safe_load(written.read_text())["labels"] == [{"pairs": {deploy.LABEL: "kind"}}]


def test_a_conflicting_field_is_named_and_overwritten_with_force(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give_secrets(state, "kind")
    assert run(state, "deploy", "kind") == 0
    cluster = read(state)
    next(item for item in cluster if item["metadata"]["name"] == "dit-services")["metadata"]["edited"] = True
    state.write_text(json.dumps(cluster))
    capsys.readouterr()
    error = refused(state, capsys, "deploy", "kind")
    assert error.endswith('conflict with "somebody" using v1: .data.K; to overwrite it, add --force\n')
    assert run(state, "deploy", "kind", "--force") == 0
