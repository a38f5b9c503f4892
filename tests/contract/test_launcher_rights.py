"""What the manifests grant is what the launcher asks for, and preflight asks about: neither less nor, of ours, more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dit.cluster import ClusterConfig
from pipelines.jobs import names, rights
from pipelines.jobs.rights import Right

K8S = Path(__file__).parents[2] / "k8s"


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


@pytest.mark.parametrize("job", ["pytorchjob", "trainjob"])
def test_the_launcher_may_do_what_it_does(job: str) -> None:
    granted = role(documents("base", "jobs", "launcher.yaml"))
    needed = rights.of_launcher(ClusterConfig.model_validate({"job": job, "queue": "gpus"}))
    assert [str(right) for right in needed if not grants(granted, right)] == []


def test_a_step_may_report_and_find_its_run() -> None:
    granted = role(documents("overlays", "pipelines", "runs", "launcher.yaml"))
    assert [str(right) for right in rights.of_steps("kubeflow") if not grants(granted, right)] == []


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
