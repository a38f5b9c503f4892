"""Scenario 7: the launcher's account is refused what it does not need."""

from __future__ import annotations

import pytest
from kube import NAMESPACE, Refused, kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
LAUNCHER = ("--as", f"system:serviceaccount:{NAMESPACE}:dit-launcher", "-n", NAMESPACE)


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
