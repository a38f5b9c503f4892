"""Accounts have exactly the permissions that docs/security.md lists."""

from __future__ import annotations

import json
import re

import pytest
from kube import NAMESPACE, SERVICES, Refused, kubectl

from pipelines.deploy import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
LAUNCHER = ("--as", f"system:serviceaccount:{NAMESPACE}:dit-launcher", "-n", NAMESPACE)
ACCOUNTS = re.findall(
    r"^\| `([a-z-]+)/([a-z0-9-]+)` \| (.*) \|$", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE
)
REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"


@pytest.mark.parametrize(("namespace", "account", "documented"), ACCOUNTS, ids=lambda value: value[:20])
def test_an_account_has_exactly_the_documented_permissions(namespace: str, account: str, documented: str) -> None:
    spec = {"namespace": namespace}
    asked = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": spec}
    caller = ("--as", f"system:serviceaccount:{namespace}:{account}", "-n", namespace)
    answer = json.loads(kubectl("create", "--raw", REVIEW, "-f", "-", *caller, stdin=json.dumps(asked)))
    result = {
        ".".join(filter(None, (resource, group))): set(rule["verbs"])
        for rule in answer["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        # Kubernetes permits everybody to review their own permissions.
        if not resource.startswith("selfsubject")
    }
    permissions = [] if documented == "none" else documented.split("; ")
    assert result == {name: set(verbs.split()) for name, verbs in (entry.split(": ") for entry in permissions)}


def test_every_deployed_account_is_documented() -> None:
    for namespace in (NAMESPACE, SERVICES):
        found = json.loads(kubectl("get", "serviceaccounts", "-n", namespace, "-o", "json"))["items"]
        names = {entry["metadata"]["name"] for entry in found}
        # An interrupted test may have left an account.
        assert {name for name in names if name != "default" and not name.startswith("test-")} == {
            account for space, account, _ in ACCOUNTS if space == namespace
        }


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
