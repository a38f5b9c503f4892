"""`make deploy` and `make undeploy` against a kubectl that renders as the real one, and keeps a cluster in a file."""

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
if arguments[0] in ("apply", "create"):
    for one in filter(None, yaml.safe_load_all(sys.stdin)):
        if "stringData" in one:
            one["data"] = one.pop("stringData")
        cluster = [other for other in cluster if place(other) != place(one)] + [one]
elif arguments[0] == "get" and "--raw" not in arguments:
    for one in cluster:
        if place(one) == [arguments[1].lower(), scope, arguments[2]]:
            print(yaml.safe_dump(one))
elif arguments[0] == "delete":
    label, value = arguments[arguments.index("-l") + 1].split("=")
    cluster = [one for one in cluster if not (kind(one) in arguments[1].split(",")
               and one["metadata"].get("namespace", "") == scope
               and one["metadata"].get("labels", {{}}).get(label) == value)]
elif arguments[0] not in ("rollout", "get"):
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
    made = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}}
        for namespace, name in deploy.required_secrets(deploy.render(overlay))
    ]
    state.write_text(json.dumps(read(state) + made))


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
    assert deploy.main(["deploy", overlay]) == 0
    assert places(read(state)) == before | places(objects) | settings_of_runs(overlay)
    assert deploy.main(["undeploy", overlay]) == 0
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


def test_secrets_are_random_complete_and_never_made_twice(state: Path) -> None:
    assert deploy.main(["secrets", "kind"]) == 0
    first = [one for one in read(state) if one["kind"] == "Secret"]
    assert deploy.main(["secrets", "kind"]) == 0
    assert [one for one in read(state) if one["kind"] == "Secret"] == first
    values = {(one["metadata"]["namespace"], one["metadata"]["name"]): one["data"] for one in first}
    assert values["dit-scaling", "dit-mlflow"].pop("MLFLOW_TRACKING_USERNAME") == "admin"
    secrets = [value for (space, _), data in values.items() if space == "dit-scaling" for value in data.values()]
    assert len(set(secrets)) == len(secrets) == 4
    assert all(len(value) >= 32 for value in secrets)


def test_steps_of_runs_read_the_settings_that_jobs_read(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy.main(["deploy", "pipelines"]) == 2
    assert "make deploy OVERLAY=kind" in capsys.readouterr().err
    deploy.create_secrets("kind")
    deploy.deploy("kind")
    assert deploy.main(["deploy", "pipelines"]) == 0
    data = {place: one.get("data") for one in read(state) for place in places([one])}
    for kind, name in deploy.SETTINGS:
        assert data[kind, "kubeflow", name] == data[kind, "dit-scaling", name]
        assert data[kind, "kubeflow", name]


def test_deploy_without_secrets_names_them_and_applies_no_pod(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy.main(["deploy", "a100"]) == 2
    error = capsys.readouterr().err
    assert "dit-mlflow-server in namespace dit-scaling" in error
    assert "docs/cluster.md" in error
    assert error.count("\n") == 1
    assert {kind for kind, _, _ in places(read(state))} == {"Namespace"}


def test_secrets_of_services_that_exist_are_not_invented(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy.main(["secrets", "a100"]) == 2
    assert "dit-mlflow-server in namespace dit-scaling" in capsys.readouterr().err
    assert not [one for one in read(state) if one["kind"] == "Secret"]


def test_no_cluster_no_image_and_no_overlay_are_one_line_each(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state.unlink()
    assert deploy.main(["deploy", "kind"]) == 2
    assert "set KUBECONFIG" in capsys.readouterr().err
    (state.parent / "build" / "image.digest").unlink()
    assert deploy.main(["deploy", "kind"]) == 2
    assert "make build push" in capsys.readouterr().err
    assert deploy.main(["deploy", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert "kind" in error
    assert error.count("\n") == 1


def test_the_written_kustomization_renders_by_itself(state: Path) -> None:
    deploy.render("kind")
    written = state.parent / "build" / "deploy" / "kind" / "kustomization.yaml"
    assert yaml.safe_load(written.read_text())["labels"] == [{"pairs": {deploy.LABEL: "kind"}}]
