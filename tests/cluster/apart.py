"""Namespaces of a test's own, with what jobs need: a second place for jobs, or a store whose keys can be replaced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import yaml
from kube import NAMESPACE, OURS, SERVICES, SESSION, Object, apply, get, kubectl
from studies import Running, pod, study_config_map

from dit import __version__
from pipelines.deploy import ROOT, SETTINGS

S3_SECRET = "dit-s3"
REVOKED_SECONDS = 30
ACCOUNT_KINDS = ("ServiceAccount", "Role", "RoleBinding")


@dataclass(frozen=True)
class Apart:
    """A namespace with accounts and settings for jobs."""

    namespace: str

    @classmethod
    @contextmanager
    def with_the_deployed_services(cls, name: str) -> Iterator[Apart]:
        """Jobs of this namespace use the servers of overlay kind."""
        with cls._made(name) as apart:
            settings = [get(kind.lower(), object_name) for kind, object_name in SETTINGS]
            copies = [
                {**item, "metadata": {"name": item["metadata"]["name"], "namespace": apart.namespace}}
                for item in filter(None, settings)
            ]
            apply(*copies, *(item for item in apart._overlay() if item["kind"] in ACCOUNT_KINDS))
            yield apart

    @classmethod
    @contextmanager
    def with_a_store(cls, name: str, keys: dict[str, str]) -> Iterator[Apart]:
        """Jobs of this namespace use a store in it, which accepts these keys."""
        with cls._made(name) as apart:
            apart.put(keys)
            apply(apart._secret("dit-s3-server", {"ROOT_ACCESS_KEY": "root", "ROOT_SECRET_KEY": "of-the-server"}))
            apply(apart._secret("dit-mlflow", {"MLFLOW_TRACKING_USERNAME": "x", "MLFLOW_TRACKING_PASSWORD": "x"}))
            apply(*filter(_of_store, apart._overlay()))
            apart.rolled_out()
            yield apart

    @classmethod
    @contextmanager
    def _made(cls, name: str) -> Iterator[Apart]:
        namespace = f"dit-scaling-{name}-{SESSION}"
        apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": OURS}})
        try:
            apply(study_config_map(namespace))
            yield cls(namespace)
        finally:
            kubectl("delete", "namespace", namespace, "--wait=false")

    def _overlay(self) -> list[Object]:
        """The objects of overlay kind, all in this namespace."""
        rendered = kubectl("kustomize", str(ROOT / "k8s" / "overlays" / "kind"))
        for name in (SERVICES, NAMESPACE):
            rendered = rendered.replace(f"namespace: {name}\n", f"namespace: {self.namespace}\n")
        pushed = (ROOT / "build" / "mlflow.digest").read_text().strip()
        rendered = rendered.replace(f"image: dit-scaling-mlflow:{__version__}", f"image: {pushed}")
        return list(yaml.safe_load_all(rendered.replace(f".{SERVICES}.svc", f".{self.namespace}.svc")))

    def _secret(self, name: str, data: dict[str, str]) -> Object:
        metadata = {"name": name, "namespace": self.namespace}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}

    def put(self, keys: dict[str, str]) -> None:
        """Write these keys of the store into its secret."""
        apply(self._secret(S3_SECRET, keys))

    def rolled_out(self) -> None:
        kubectl("rollout", "status", "deployment/s3", "-n", self.namespace, "--timeout=240s")

    def revoke(self, before: dict[str, str], after: dict[str, str]) -> None:
        """Let the store accept only the keys `after`; the secret has them only after a while."""
        self.put(after)
        kubectl("rollout", "restart", "deployment/s3", "-n", self.namespace)
        self.rolled_out()
        self.put(before)
        time.sleep(REVOKED_SECONDS)
        self.put(after)

    def pod(self, name: str, image: str, command: list[str]) -> Running:
        """Start a launcher's pod."""
        apply(pod(name, image, command, "dit-launcher", self.namespace))
        return Running(name, self.namespace)


def _of_store(manifest: Object) -> bool:
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    return (name == "s3" and kind != "NetworkPolicy") or kind in ACCOUNT_KINDS or name == "dit-services"
