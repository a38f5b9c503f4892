"""The permissions of accounts: those that docs/security.md lists, and those that the API server grants."""

from __future__ import annotations

import json
import re

from kube import kubectl

from pipelines.deploy import ROOT

ACCOUNTS = re.findall(
    r"^\| `([a-z-]+)/([a-z0-9-]+)` \| (.*) \|$", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE
)
"""(Namespace, account, permissions) of each row of the table."""
_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"


def documented(permissions: str) -> dict[str, set[str]]:
    """Resource -> verbs, of a cell of the table."""
    entries = [] if permissions == "none" else permissions.split("; ")
    return {name: set(verbs.split()) for name, verbs in (entry.split(": ") for entry in entries)}


def granted(namespace: str, account: str) -> dict[str, set[str]]:
    """Resource -> verbs, of an account in its own namespace."""
    asked = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    caller = ("--as", f"system:serviceaccount:{namespace}:{account}", "-n", namespace)
    answer = json.loads(kubectl("create", "--raw", _REVIEW, "-f", "-", *caller, stdin=json.dumps(asked)))
    return {
        ".".join(filter(None, (resource, group))): set(rule["verbs"])
        for rule in answer["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        # Kubernetes permits everybody to review their own permissions.
        if not resource.startswith("selfsubject")
    }
