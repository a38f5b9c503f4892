"""Accounts have exactly the permissions that docs/security.md lists."""

from __future__ import annotations

import json

import pytest
from kube import NAMESPACE, SERVICES, Refused, kubectl
from rights import ACCOUNTS, documented, granted

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
LAUNCHER = ("--as", f"system:serviceaccount:{NAMESPACE}:dit-launcher", "-n", NAMESPACE)


@pytest.mark.parametrize(
    ("namespace", "account", "permissions"),
    [row for row in ACCOUNTS if row[0] in (NAMESPACE, SERVICES)],
    ids=lambda value: value[:20],
)
def test_an_account_has_exactly_the_documented_permissions(namespace: str, account: str, permissions: str) -> None:
    assert granted(namespace, account) == documented(permissions)


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
