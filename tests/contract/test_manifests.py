"""The rendered overlays are valid, restricted and bounded, and contain no secret."""

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
"""Kueue's kinds, whose schema is not available here."""
CLUSTER_SCOPED = {"Namespace", "PriorityClass", "ResourceFlavor", "ClusterQueue"}
CLUSTER_SCOPED |= {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build")


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Name -> object."""
    return {item["metadata"]["name"]: item for item in manifests if item["kind"] == kind}


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return of_kind(manifests, kind)[name]


@every_overlay
def test_every_object_is_valid_under_a_strict_schema(overlay: str, build: Path) -> None:
    checked = [item for item in rendered(overlay, build) if item["kind"] not in WITHOUT_SCHEMA]
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
    assert {name for _, name in required_secrets(manifests)} >= job.secrets.keys()
    allowed = find(manifests, "Namespace", job.namespace)["metadata"]["annotations"]
    assert allowed["dit-scaling/job-accounts"].split() == [job.service_account]
    assert set(allowed["dit-scaling/job-secrets"].split()) == job.secrets.keys()
    assert set(allowed["dit-scaling/job-config-maps"].split()) == job.config_maps.keys()


@every_overlay
def test_every_pod_is_restricted_read_only_and_bounded(overlay: str, build: Path) -> None:
    for name, pod in pod_templates(rendered(overlay, build)):
        assert violations(pod) == [], name
        for container in containers(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys() & resources["limits"].keys(), name


def test_a_pod_that_breaks_the_restricted_standard_is_found(build: Path) -> None:
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
        assert overlay.startswith("kind") or "@sha256:" in image, image


@every_overlay
def test_secrets_are_named_and_never_written(overlay: str, build: Path) -> None:
    manifests = rendered(overlay, build)
    # Kubernetes writes the token of an account.
    assert not [item for item in of_kind(manifests, "Secret").values() if item.keys() & {"data", "stringData"}]
    suspicious = re.compile(r"PASSWORD|TOKEN|SECRET|ACCESS_KEY")
    for name, pod in pod_templates(manifests):
        variables = [variable for item in containers(pod) for variable in item.get("env", [])]
        assert not [item for item in variables if suspicious.search(item["name"]) and "value" in item], name
    for manifest in of_kind(manifests, "ConfigMap").values():
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
    assert {item["metadata"]["labels"][LABEL] for item in manifests} == {overlay}
    assert {item["metadata"]["labels"]["app.kubernetes.io/part-of"] for item in manifests} == {"dit-scaling"}
    namespaces = {item["metadata"].get("namespace") for item in manifests if item["kind"] not in CLUSTER_SCOPED}
    assert namespaces == {"dit-scaling", "kubeflow" if overlay == "pipelines" else "dit-scaling-services"}
    assert not [item for item in manifests if item["kind"] in CLUSTER_SCOPED and "namespace" in item["metadata"]]
    assert "set-by-overlay" not in str(manifests)


def there_with(overlay: str, build: Path) -> list[dict[str, Any]]:
    """The overlay's objects, and those that must be deployed before it."""
    return [*rendered(overlay, build), *(rendered("kind", build) if overlay == "pipelines" else [])]


@every_overlay
def test_every_object_that_is_named_exists(overlay: str, build: Path) -> None:
    manifests = there_with(overlay, build)
    names = {(item["kind"], item["metadata"]["name"]) for item in manifests}
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
    for binding in of_kind(manifests, "RoleBinding").values():
        assert ("Role", binding["roleRef"]["name"]) in names
        for subject in binding["subjects"]:
            assert subject["namespace"]
            # Kubeflow Pipelines brings its own.
            assert subject["name"] == "pipeline-runner" or ("ServiceAccount", subject["name"]) in names


def test_the_queue_has_the_eight_gpus_of_one_node(build: Path) -> None:
    """With a larger quota, two jobs could each hold some of the GPUs that the other needs."""
    for overlay in ("kind-queue", "a100"):
        (group,) = find(rendered(overlay, build), "ClusterQueue", "dit-scaling")["spec"]["resourceGroups"]
        quotas = {item["name"]: item["nominalQuota"] for item in group["flavors"][0]["resources"]}
        assert quotas["nvidia.com/gpu"] == "8"
        for study in ("imagenet256", "imagenet256-52k"):
            cluster = load(ROOT / "configs" / f"{study}.yaml").cluster
            assert list(shortage(cluster, {"spec": {"resourceGroups": [group]}})) == []


def test_the_namespace_of_jobs_enforces_restricted(build: Path) -> None:
    for overlay in ("kind", "a100"):
        labels = find(rendered(overlay, build), "Namespace", "dit-scaling")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


# Argo's executor in a step's pod reports the step's result with these rights.
EXECUTOR = {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]}

# The reaper deletes the pods of a job with these rights.
PODS_THAT_GO = {"apiGroups": [""], "resources": ["pods"], "verbs": ["deletecollection"]}


@every_overlay
def test_no_role_reaches_secrets_other_pods_or_other_namespaces(overlay: str, build: Path) -> None:
    manifests = rendered(overlay, build)
    assert not [item for item in manifests if item["kind"].startswith("Cluster") and "Role" in item["kind"]]
    reading = {"get", "list", "watch"}
    for role in of_kind(manifests, "Role").values():
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
    accounts = of_kind(manifests, "ServiceAccount")
    assert {pod["serviceAccountName"] for _, pod in pod_templates(manifests)} <= accounts.keys()
    assert all(item["imagePullSecrets"] == [{"name": "registry"}] for item in accounts.values())
    of_jobs, of_runs = {"dit-worker", "dit-reaper", "mlflow"}, {"dit-launcher", "dit-step"}
    assert accounts.keys() >= (of_runs if overlay == "pipelines" else of_jobs)


def test_only_launcher_and_reaper_get_a_token(build: Path) -> None:
    accounts = of_kind(rendered("kind", build), "ServiceAccount")
    tokens = {name for name, item in accounts.items() if item.get("automountServiceAccountToken") is not False}
    assert tokens == {"dit-launcher", "dit-reaper"}


def test_mlflow_accepts_only_its_own_host_names_and_has_time_to_start(build: Path) -> None:
    pod = find(rendered("kind", build), "Deployment", "mlflow")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    values = {item["name"]: item.get("value", "") for item in container["env"]}
    hosts = values["MLFLOW_SERVER_ALLOWED_HOSTS"].replace("$(NAMESPACE)", "dit-scaling").split(",")
    for name in ("mlflow", "mlflow.dit-scaling", "mlflow.dit-scaling.svc", "mlflow.dit-scaling.svc.cluster.local"):
        assert {name, f"{name}:*"} <= set(hosts)
    assert "*" not in hosts
    assert {"localhost:*", "127.0.0.1:*"} <= set(hosts)
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 120


@pytest.mark.parametrize("overlay", ["kind", "a100"])
def test_network_traffic_is_denied_by_default_and_each_port_has_a_peer(overlay: str, build: Path) -> None:
    policies = [item for item in rendered(overlay, build) if item["kind"] == "NetworkPolicy"]
    for namespace in ("dit-scaling", "dit-scaling-services"):
        ours = {
            item["metadata"]["name"]: item["spec"] for item in policies if item["metadata"]["namespace"] == namespace
        }
        assert ours["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        for name, spec in ours.items():
            # No selector can name the API server.
            for rule in [*spec.get("egress", []), *spec.get("ingress", [])] if name != "api-server" else []:
                peers = rule.get("to") or rule.get("from")
                assert peers, (namespace, name)
                assert all(peers), (namespace, name)
                assert {"ipBlock": {"cidr": "0.0.0.0/0"}} not in peers


def test_patches_of_overlays_are_json_patches() -> None:
    for path in (ROOT / "k8s").rglob("kustomization.yaml"):
        assert "patchesStrategicMerge" not in path.read_text()
        for patch in re.findall(r"patch: \|-\n((?:    .*\n?)+)", path.read_text()):
            assert patch.lstrip().startswith("- "), path
