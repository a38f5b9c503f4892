"""The secrets that deployed pods read: the keys they need, the missing ones, and random values for new ones."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from dit.errors import InputError
from pipelines.cluster.kubectl import kubectl

Place = tuple[str, str]
"""Namespace and name of a secret."""

# Names of users; MLflow always calls its administrator admin.
_USERS = {"MLFLOW_TRACKING_USERNAME": "dit", "MLFLOW_AUTH_ADMIN_USERNAME": "admin"}


def required_secrets(manifests: Sequence[dict[str, Any]]) -> dict[Place, set[str]]:
    """Secret -> keys that pods read; empty for a secret that is only read as a whole (`envFrom`)."""
    needed: dict[Place, set[str]] = {}
    for manifest in manifests:
        if manifest["kind"] != "Deployment":
            continue
        pod = manifest["spec"]["template"]["spec"]
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            whole = [source["secretRef"]["name"] for source in container.get("envFrom", []) if "secretRef" in source]
            for name in whole:
                needed.setdefault((manifest["metadata"]["namespace"], name), set())
            sources = [variable.get("valueFrom", {}).get("secretKeyRef") for variable in container.get("env", [])]
            for source in filter(None, sources):
                needed.setdefault((manifest["metadata"]["namespace"], source["name"]), set()).add(source["key"])
    return needed


def missing_secrets(manifests: Sequence[dict[str, Any]]) -> list[Place]:
    """Secrets that pods read but the cluster does not have."""
    return [place for place in required_secrets(manifests) if _data(place) is None]


def check_secrets(manifests: Sequence[dict[str, Any]]) -> None:
    """Raises InputError with the secrets and keys that pods read but the cluster does not have."""
    if lacking := list(_lacking(manifests)):
        raise InputError(f"missing {', '.join(lacking)}; the commands that create it are in docs/cluster.md, Secrets")


def _lacking(manifests: Sequence[dict[str, Any]]) -> Iterator[str]:
    for place, keys in required_secrets(manifests).items():
        namespace, name = place
        data = _data(place)
        if data is None:
            yield f"secret {name} in namespace {namespace}"
        elif without := sorted(key for key in keys if not data.get(key)):
            yield f"{', '.join(without)} of secret {name} in namespace {namespace}"


def create_secret(place: Place, keys: set[str]) -> None:
    """Create a secret with random values."""
    namespace, name = place
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "dit-scaling"}},
        "stringData": {key: _USERS.get(key) or secrets.token_hex(20) for key in sorted(keys)},
    }
    # On standard input: command lines are visible to every user of the machine.
    kubectl("create", "-f", "-", stdin=yaml.safe_dump(secret))
    sys.stderr.write(f"created secret {name} in namespace {namespace}\n")


def _data(place: Place) -> dict[str, str] | None:
    """Content of a secret in base64; None if it does not exist."""
    namespace, name = place
    text = kubectl("get", "secret", name, "-n", namespace, "--ignore-not-found", "-o", "yaml")
    return yaml.safe_load(text).get("data") or {} if text else None
