"""What the manifests grant is what the launcher asks for, and preflight asks about: neither less nor, of ours, more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dit.study.cluster import ClusterConfig
from pipelines.jobs import names, permissions
from pipelines.jobs.permissions import Right
from pipelines.jobs.registry import all_kinds

K8S = Path(__file__).parents[3] / "k8s"
REAPS = ("get", "list", "delete")


def documents(*parts: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(K8S.joinpath(*parts).read_text()) if one]


def grants(role: dict[str, Any], right: Right) -> bool:
    path = f"{right.resource}/{right.subresource}" if right.subresource else right.resource
    return any(
        right.group in rule["apiGroups"] and path in rule["resources"] and right.verb in rule["verbs"]
        for rule in role["rules"]
    )


def role(found: list[dict[str, Any]]) -> dict[str, Any]:
    return next(one for one in found if one["kind"] == "Role" and one["metadata"]["name"] == names.LAUNCHER)


def granted_by(role: dict[str, Any]) -> set[str]:
    """As `Right` spells them."""
    return {
        f"{verb} {resource}{f'.{group}' if group else ''}"
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_launcher_may_do_what_it_does_and_no_more() -> None:
    studies = [ClusterConfig.model_validate({"job": job, "queue": "gpus"}) for job in ("pytorchjob", "trainjob")]
    needed = {str(right) for study in studies for right in permissions.of_launcher(study)}
    # `dit status`, in a pod of this account, lists a study's jobs.
    needed |= {f"list {kind.resource.plural}.{kind.resource.group}" for kind in all_kinds()}
    assert granted_by(role(documents("base", "jobs", "launcher.yaml"))) == needed


def test_the_reaper_may_find_jobs_and_delete_them_with_their_pods() -> None:
    found = documents("base", "jobs", "reaper.yaml")
    (own,) = (one for one in found if one["kind"] == "Role")
    needed = {f"{verb} {one.resource.plural}.{one.resource.group}" for one in all_kinds() for verb in REAPS}
    assert granted_by(own) == needed | {"deletecollection pods"}


def test_a_step_may_report_and_find_its_run() -> None:
    granted = role(documents("overlays", "pipelines", "runs", "launcher.yaml"))
    assert [str(right) for right in permissions.of_steps("kubeflow") if not grants(granted, right)] == []


def test_steps_of_either_account_may_start_jobs() -> None:
    """`kfp run create` names no account, so that Kubeflow Pipelines' own is taken."""
    (binding,) = documents("overlays", "pipelines", "jobs", "launcher.yaml")
    subjects = {(one["namespace"], one["name"]) for one in binding["subjects"]}
    assert subjects == {(names.RUNS_NAMESPACE, names.LAUNCHER), (names.RUNS_NAMESPACE, "pipeline-runner")}


def test_the_names_that_preflight_looks_for_are_those_of_the_manifests() -> None:
    accounts = [
        one["metadata"]["name"] for one in documents("base", "accounts.yaml") if one["kind"] == "ServiceAccount"
    ]
    deployed = [
        one["metadata"]["name"] for one in documents("base", "jobs", "reaper.yaml") if one["kind"] == "Deployment"
    ]
    assert accounts == [names.LAUNCHER]
    assert deployed == [names.REAPER]
