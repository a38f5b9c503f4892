"""The manifests grant exactly the permissions that launcher and reaper need and preflight checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dit.study.cluster import ClusterConfig
from pipelines.jobs import names, permissions
from pipelines.jobs.permissions import Right
from pipelines.jobs.registry import KINDS

K8S = Path(__file__).parents[3] / "k8s"
REAPS = ("get", "list", "delete")


def documents(*parts: str) -> list[dict[str, Any]]:
    return [item for item in yaml.safe_load_all(K8S.joinpath(*parts).read_text()) if item]


def grants(role: dict[str, Any], right: Right) -> bool:
    path = f"{right.resource}/{right.subresource}" if right.subresource else right.resource
    return any(
        right.group in rule["apiGroups"] and path in rule["resources"] and right.verb in rule["verbs"]
        for rule in role["rules"]
    )


def role(manifests: list[dict[str, Any]], name: str = names.LAUNCHER) -> dict[str, Any]:
    return next(item for item in manifests if item["kind"] == "Role" and item["metadata"]["name"] == name)


def granted_by(role: dict[str, Any]) -> set[str]:
    """Permissions of a role, in the format of `Right`."""
    return {
        f"{verb} {resource}{f'.{group}' if group else ''}"
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_launchers_role_has_exactly_the_permissions_it_needs() -> None:
    studies = [ClusterConfig.model_validate({"job": job, "queue": "gpus"}) for job in ("pytorchjob", "trainjob")]
    needed = {str(right) for study in studies for right in permissions.of_launcher(study)}
    # `dit status`, in a pod of this account, lists a study's jobs.
    needed |= {f"list {kind.resource.plural}.{kind.resource.group}" for kind in KINDS.values()}
    assert granted_by(role(documents("base", "jobs", "launcher.yaml"))) == needed


def test_the_reapers_role_has_exactly_the_permissions_it_needs() -> None:
    result = documents("base", "jobs", "reaper.yaml")
    (own,) = (item for item in result if item["kind"] == "Role")
    needed = {f"{verb} {item.resource.plural}.{item.resource.group}" for item in KINDS.values() for verb in REAPS}
    assert granted_by(own) == needed | {"deletecollection pods"}


def test_the_role_of_steps_has_the_permissions_they_need() -> None:
    manifests = documents("overlays", "pipelines", "runs", "launcher.yaml")
    for name, needed in ((names.STEP, permissions.of_steps), (names.LAUNCHER, permissions.of_launching_steps)):
        assert [str(right) for right in needed("kubeflow") if not grants(role(manifests, name), right)] == []


def test_the_account_of_steps_may_not_start_jobs() -> None:
    """`kfp run create` cannot set an account and uses the one of Kubeflow Pipelines."""
    (binding,) = documents("overlays", "pipelines", "jobs", "launcher.yaml")
    subjects = {(item["namespace"], item["name"]) for item in binding["subjects"]}
    assert subjects == {(names.RUNS_NAMESPACE, names.LAUNCHER), (names.RUNS_NAMESPACE, "pipeline-runner")}


def test_preflight_checks_the_names_of_the_manifests() -> None:
    accounts = [
        item["metadata"]["name"] for item in documents("base", "accounts.yaml") if item["kind"] == "ServiceAccount"
    ]
    deployed = [
        item["metadata"]["name"] for item in documents("base", "jobs", "reaper.yaml") if item["kind"] == "Deployment"
    ]
    assert accounts == [names.LAUNCHER]
    assert deployed == [names.REAPER]
