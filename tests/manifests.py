"""Rendered overlays for tests, and what a manifest must satisfy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from pipelines.deploy import IMAGES, Manifest, overlays, render

DIGEST = "sha256:" + "0" * 64
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders, is not on PATH")
every_overlay = pytest.mark.parametrize("overlay", overlays())

_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def pretend_pushed(build: Path) -> Path:
    """Write what `make push` writes into a build folder, which is returned."""
    build.mkdir(parents=True, exist_ok=True)
    for name, file in IMAGES.items():
        (build / file).write_text(f"registry.example.com/{name}@{DIGEST}\n")
    return build


@lru_cache
def rendered(overlay: str, build: Path) -> list[Manifest]:
    """An overlay as it would be applied, rendered once."""
    return render(overlay, pretend_pushed(build))


def pod_templates(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod spec of everything that makes pods."""
    for manifest in manifests:
        template = manifest.get("spec", {}).get("template")
        if template is not None:
            yield f"{manifest['kind']} {manifest['metadata']['name']}", template["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """All containers of a pod, those that run first included."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def violations(pod: dict[str, Any]) -> list[str]:
    """What the Pod Security standard `restricted` refuses in a pod."""
    found = [f"{name} is shared with the host" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    for volume in pod.get("volumes", []):
        found += [f"volume {volume['name']} is {kind}" for kind in volume.keys() - {"name"} - _VOLUMES]
    for container in containers(pod):
        own = container.get("securityContext", {})
        context = {**pod.get("securityContext", {}), **own}
        checks = {
            "may run as root": context.get("runAsNonRoot") is True and context.get("runAsUser") != 0,
            "has no seccomp profile": context.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "may gain privileges": own.get("allowPrivilegeEscalation") is False and not own.get("privileged"),
            "keeps capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "opens a port of the host": not any("hostPort" in port for port in container.get("ports", [])),
        }
        found += [f"{container['name']} {text}" for text, holds in checks.items() if not holds]
    return found
