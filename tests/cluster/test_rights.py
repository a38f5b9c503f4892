"""Scenario 7: the launcher's account has exactly the permissions it needs."""

from __future__ import annotations

import json

import pytest
from kube import NAMESPACE, Refused, kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
LAUNCHER = ("--as", f"system:serviceaccount:{NAMESPACE}:dit-launcher", "-n", NAMESPACE)
MANAGE = {"create", "get", "patch", "delete"}
RIGHTS = {
    "pytorchjobs.kubeflow.org": MANAGE | {"list"},
    "trainjobs.trainer.kubeflow.org": MANAGE | {"list"},
    "trainingruntimes.trainer.kubeflow.org": MANAGE,
    "workloads.kueue.x-k8s.io": {"list"},
    "events": {"list"},
    "pods": {"list"},
    "pods/log": {"get"},
}
REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"


def test_the_launcher_has_exactly_these_permissions() -> None:
    spec = {"namespace": NAMESPACE}
    asked = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": spec}
    answer = json.loads(kubectl("create", "--raw", REVIEW, "-f", "-", *LAUNCHER, stdin=json.dumps(asked)))
    result = {
        ".".join(filter(None, (resource, group))): set(rule["verbs"])
        for rule in answer["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        # Kubernetes permits everybody to review their own permissions.
        if not resource.startswith("selfsubject")
    }
    assert result == RIGHTS


@pytest.mark.parametrize(
    "command",
    [
        ("get", "secret", "dit-s3"),
        ("get", "secret", "of-another-name"),
        ("get", "secrets"),
        ("exec", "{pod}", "--", "true"),
        ("create", "-f", "-", "-n", "default"),
        ("get", "pytorchjobs", "-n", "default"),
        ("delete", "pod", "{pod}"),
        ("create", "token", "dit-launcher"),
    ],
    ids=" ".join,
)
def test_the_launcher_is_refused_other_calls(command: tuple[str, ...]) -> None:
    pod = kubectl("get", "pods", "-n", NAMESPACE, "-o", "jsonpath={.items[0].metadata.name}")
    job = "apiVersion: kubeflow.org/v1\nkind: PyTorchJob\nmetadata: {name: theirs}\nspec: {pytorchReplicaSpecs: {}}\n"
    with pytest.raises(Refused, match=r"Forbidden|forbidden"):
        kubectl(*LAUNCHER, *(word.format(pod=pod) for word in command), stdin=job)
