"""Every overlay, as it would be applied: valid, restricted, bounded, and without a secret in it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from manifests import DIGEST, containers, every_overlay, needs_kubectl, pod_templates, rendered, violations

from dit.study.cluster import ClusterConfig
from dit.study.study_file import load
from pipelines.cluster.kubectl import kubectl
from pipelines.cluster.secrets import required_secrets
from pipelines.deploy import LABEL, Manifest
from pipelines.preflight.capacity import shortage

pytestmark = needs_kubectl

KUBERNETES = "1.34"
WITHOUT_SCHEMA = {"ResourceFlavor", "ClusterQueue", "LocalQueue"}
"""Kueue's kinds: nothing here knows their fields; a cluster does."""
CLUSTER_SCOPED = {"Namespace", "PriorityClass", "ResourceFlavor", "ClusterQueue"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build")


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return next(one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name))


@every_overlay
def test_every_object_is_valid_to_the_last_field(overlay: str, build: Path) -> None:
    checked = [one for one in rendered(overlay, build) if one["kind"] not in WITHOUT_SCHEMA]
    assert checked
    for manifest in checked:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found(build: Path) -> None:
    broken = copy.deepcopy(find(rendered("kind", build), "Deployment", "mlflow"))
    broken["spec"]["template"]["spec"]["containers"][0]["resourcs"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="resourcs"):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_a_job_names_by_default_what_deploy_makes(build: Path) -> None:
    job, manifests = ClusterConfig(), rendered("kind", build)
    assert find(manifests, "ServiceAccount", job.service_account)["metadata"]["namespace"] == job.namespace
    assert {(job.namespace, name) for name in job.secrets} <= required_secrets(manifests).keys()


@every_overlay
def test_every_pod_is_restricted_read_only_and_bounded(overlay: str, build: Path) -> None:
    for name, pod in pod_templates(rendered(overlay, build)):
        assert violations(pod) == [], name
        for container in containers(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys() & resources["limits"].keys(), name


def test_what_restricted_refuses_is_found(build: Path) -> None:
    (_, good), *_ = pod_templates(rendered("kind", build))
    for change in (
        {"hostNetwork": True},
        {"securityContext": {}},
        {"volumes": [{"name": "disk", "hostPath": {"path": "/"}}]},
        {"containers": [{**good["containers"][0], "securityContext": {"allowPrivilegeEscalation": False}}]},
    ):
        assert violations({**good, **change}), change


@every_overlay
def test_every_image_has_a_tag_or_a_digest_and_ours_a_digest(overlay: str, build: Path) -> None:
    images = [item["image"] for _, pod in pod_templates(rendered(overlay, build)) for item in containers(pod)]
    for image in images:
        assert re.search(r"(:[\w.-]+|@sha256:[0-9a-f]{64})$", image), image
        assert not image.endswith(":latest")
        assert "dit-scaling" not in image or image.endswith(f"@{DIGEST}"), image


@every_overlay
def test_secrets_are_named_and_never_written(overlay: str, build: Path) -> None:
    manifests = rendered(overlay, build)
    assert not [one for one in manifests if one["kind"] == "Secret"]
    suspicious = re.compile(r"PASSWORD|TOKEN|SECRET|ACCESS_KEY")
    for name, pod in pod_templates(manifests):
        variables = [variable for item in containers(pod) for variable in item.get("env", [])]
        assert not [one for one in variables if suspicious.search(one["name"]) and "value" in one], name
    for manifest in manifests:
        if manifest["kind"] == "ConfigMap":
            assert not [key for key in manifest["data"] if suspicious.search(key)]
            assert not re.search(r"(?i)password *=|://[^/\s]*:[^/\s]*@", str(manifest["data"]))


@every_overlay
def test_the_documentation_says_how_to_create_each_secret(overlay: str, build: Path) -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    for (_, name), keys in required_secrets(rendered(overlay, build)).items():
        command = re.search(rf"kubectl create secret generic {name} (?:.*\\\n)*.*", text)
        assert command, name
        assert all(key in command[0] for key in keys), name


@every_overlay
def test_every_object_is_labelled_and_in_the_overlays_namespace(overlay: str, build: Path) -> None:
    manifests = rendered(overlay, build)
    assert {one["metadata"]["labels"][LABEL] for one in manifests} == {overlay}
    assert {one["metadata"]["labels"]["app.kubernetes.io/part-of"] for one in manifests} == {"dit-scaling"}
    namespaces = {one["metadata"].get("namespace") for one in manifests if one["kind"] not in CLUSTER_SCOPED}
    assert namespaces == ({"kubeflow", "dit-scaling"} if overlay == "pipelines" else {"dit-scaling"})
    assert not [one for one in manifests if one["kind"] in CLUSTER_SCOPED and "namespace" in one["metadata"]]
    assert "set-by-overlay" not in str(manifests)


def there_with(overlay: str, build: Path) -> list[dict[str, Any]]:
    """The overlay's objects, and those that must be deployed before it."""
    return [*rendered(overlay, build), *(rendered("kind", build) if overlay == "pipelines" else [])]


@every_overlay
def test_what_an_object_names_is_there(overlay: str, build: Path) -> None:
    manifests = there_with(overlay, build)
    names = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    for name, pod in pod_templates(manifests):
        assert ("ServiceAccount", pod["serviceAccountName"]) in names, name
        for volume in pod.get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names, name
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names, name
        for item in containers(pod):
            for source in item.get("envFrom", []):
                assert "secretRef" in source or ("ConfigMap", source["configMapRef"]["name"]) in names, name
        if priority := pod.get("priorityClassName"):
            assert ("PriorityClass", priority) in names
    for binding in (one for one in manifests if one["kind"] == "RoleBinding"):
        assert ("Role", binding["roleRef"]["name"]) in names
        for subject in binding["subjects"]:
            assert subject["namespace"]
            # Kubeflow Pipelines brings its own.
            assert subject["name"] == "pipeline-runner" or ("ServiceAccount", subject["name"]) in names


def test_the_queue_is_for_one_node_of_eight_gpus(build: Path) -> None:
    """More than there are would start jobs whose pods take the GPUs from each other."""
    for overlay in ("kind-queue", "a100"):
        (group,) = find(rendered(overlay, build), "ClusterQueue", "dit-scaling")["spec"]["resourceGroups"]
        quotas = {one["name"]: one["nominalQuota"] for one in group["flavors"][0]["resources"]}
        assert quotas["nvidia.com/gpu"] == "8"
        for study in ("imagenet256", "imagenet256-52k"):
            cluster = load(ROOT / "configs" / f"{study}.yaml").cluster
            assert list(shortage(cluster, {"spec": {"resourceGroups": [group]}})) == []


def test_the_namespace_of_jobs_enforces_restricted(build: Path) -> None:
    for overlay in ("kind", "a100"):
        labels = find(rendered(overlay, build), "Namespace", "dit-scaling")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


# Argo's own, in the pods of a run: how a step's result reaches its workflow.
EXECUTOR = {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]}

# The reaper's, for the pods of the jobs that it deletes.
PODS_THAT_GO = {"apiGroups": [""], "resources": ["pods"], "verbs": ["deletecollection"]}


@every_overlay
def test_no_role_reaches_secrets_other_pods_or_other_namespaces(overlay: str, build: Path) -> None:
    manifests = rendered(overlay, build)
    assert not [one for one in manifests if one["kind"].startswith("Cluster") and "Role" in one["kind"]]
    reading = {"get", "list", "watch"}
    for role in (one for one in manifests if one["kind"] == "Role"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert not {"pods/exec", "pods/attach", "roles", "rolebindings"} & set(rule["resources"])
            assert "secrets" not in rule["resources"] or len(rule["resourceNames"]) == 1, rule
            if not {"kubeflow.org", "trainer.kubeflow.org"} & set(rule["apiGroups"]) and rule not in (
                EXECUTOR,
                PODS_THAT_GO,
            ):
                assert set(rule["verbs"]) <= reading, rule
    reaper = find(manifests, "Role", "dit-reaper")["rules"]
    assert {verb for rule in reaper for verb in rule["verbs"]} <= {"get", "list", "watch", "delete", "deletecollection"}


@every_overlay
def test_every_account_can_be_given_a_pull_secret_as_documented(overlay: str, build: Path) -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    documented = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    rendered(overlay, build)
    folder = build / "deploy" / overlay
    patched = folder.with_name(f"{overlay}-private")
    patched.mkdir()
    (patched / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [f"../{overlay}"], **documented}))
    manifests = list(yaml.safe_load_all(kubectl("kustomize", str(patched))))
    accounts = {one["metadata"]["name"]: one for one in manifests if one["kind"] == "ServiceAccount"}
    assert {pod["serviceAccountName"] for _, pod in pod_templates(manifests)} <= accounts.keys()
    assert all(one["imagePullSecrets"] == [{"name": "registry"}] for one in accounts.values())
    assert accounts.keys() >= ({"dit-launcher"} if overlay == "pipelines" else {"dit-worker", "dit-reaper", "mlflow"})


def test_only_launcher_and_reaper_have_a_token(build: Path) -> None:
    accounts = [one for one in rendered("kind", build) if one["kind"] == "ServiceAccount"]
    tokens = {one["metadata"]["name"] for one in accounts if one.get("automountServiceAccountToken") is not False}
    assert tokens == {"dit-launcher", "dit-reaper"}


def test_the_server_takes_its_names_and_no_other_and_has_time_to_start(build: Path) -> None:
    pod = find(rendered("kind", build), "Deployment", "mlflow")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    values = {one["name"]: one.get("value", "") for one in container["env"]}
    hosts = values["MLFLOW_SERVER_ALLOWED_HOSTS"].replace("$(NAMESPACE)", "dit-scaling").split(",")
    for name in ("mlflow", "mlflow.dit-scaling", "mlflow.dit-scaling.svc", "mlflow.dit-scaling.svc.cluster.local"):
        assert {name, f"{name}:*"} <= set(hosts)
    assert "*" not in hosts
    assert {"localhost:*", "127.0.0.1:*"} <= set(hosts)
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 120


def test_nothing_may_talk_but_what_a_policy_allows(build: Path) -> None:
    for overlay in ("kind", "a100"):
        deny = find(rendered(overlay, build), "NetworkPolicy", "default-deny")["spec"]
        assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_patches_of_overlays_are_json_patches() -> None:
    for path in (ROOT / "k8s").rglob("kustomization.yaml"):
        assert "patchesStrategicMerge" not in path.read_text()
        for patch in re.findall(r"patch: \|-\n((?:    .*\n?)+)", path.read_text()):
            assert patch.lstrip().startswith("- "), path
