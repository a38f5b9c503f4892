"""Scenario 9: what every further try would end alike ends a job at once; what heals is waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from kube import NAMESPACE, OURS, SERVICES, SESSION, Object, apply, get, kubectl, until
from studies import Running, Site, pod, study_config_map

from dit import __version__
from dit.checkpoints.read import list_checkpoints
from pipelines.cluster.client import Cluster
from pipelines.cluster.store_access import study_store
from pipelines.deploy import ROOT

RECIPE = ("train.steps=400", "fit.checkpoint_every=40", "cluster.replicas=2")
PYTORCHJOB = "pytorchjobs.kubeflow.org"
SECRET = "dit-s3"
REVOKED_SECONDS = 30
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def test_a_shard_with_a_flipped_byte_ends_the_job_at_the_first_try(site: Site) -> None:
    apart = replace(site, root=f"{site.root}-poisoned")
    study = apart.study("poisoned", *RECIPE)
    study.run("prepare")
    key = next(key for key in apart.store.list("datasets") if key.endswith("shard-00001.tar"))
    data = bytearray(apart.store.read(key))
    data[len(data) // 2] ^= 1
    apart.store.write(key, bytes(data))
    ended = study.launch().end(300)
    assert ended.code == 3
    assert "shard-00001.tar: SHA-256 is" in ended.last_line
    assert "every further try would end alike" in ended.last_line
    # One exit of each pod, and at most one more until the job was deleted.
    assert 1 <= ended.log.count("ended: exit code 3") <= 4
    assert get(PYTORCHJOB, study.job()) is None
    for folder in ("datasets", "studies"):
        apart.store.delete(folder)


@dataclass(frozen=True)
class Apart:
    """A namespace of the test's own with a store, whose keys can be replaced without disturbing others."""

    namespace: str

    @classmethod
    @contextmanager
    def made(cls) -> Iterator[Apart]:
        """Create the namespace with what jobs need of overlay kind; delete it at the end."""
        namespace = f"dit-scaling-apart-{SESSION}"
        rendered = kubectl("kustomize", str(ROOT / "k8s" / "overlays" / "kind"))
        for name in (SERVICES, NAMESPACE):
            rendered = rendered.replace(f"namespace: {name}\n", f"namespace: {namespace}\n")
        pushed = (ROOT / "build" / "mlflow.digest").read_text().strip()
        rendered = rendered.replace(f"image: dit-scaling-mlflow:{__version__}", f"image: {pushed}")
        objects = list(yaml.safe_load_all(rendered.replace(f".{SERVICES}.svc", f".{namespace}.svc")))
        apart = cls(namespace)
        apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": OURS}})
        try:
            apart.put({"AWS_ACCESS_KEY_ID": "first", "AWS_SECRET_ACCESS_KEY": "of-the-first-keys"})
            apply(apart.secret("dit-mlflow", {"MLFLOW_TRACKING_USERNAME": "x", "MLFLOW_TRACKING_PASSWORD": "x"}))
            apply(apart.secret("dit-s3-server", {"ROOT_ACCESS_KEY": "root", "ROOT_SECRET_KEY": "of-the-server"}))
            apply(study_config_map(namespace), *filter(_needed, objects))
            apart.rolled_out()
            yield apart
        finally:
            kubectl("delete", "namespace", namespace, "--wait=false")

    def secret(self, name: str, data: dict[str, str]) -> Object:
        metadata = {"name": name, "namespace": self.namespace}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}

    def put(self, keys: dict[str, str]) -> None:
        """Write these keys of the store into its secret."""
        apply(self.secret(SECRET, keys))

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


def _needed(manifest: Object) -> bool:
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    of_store = name == "s3" and kind != "NetworkPolicy"
    return of_store or kind in ("ServiceAccount", "Role", "RoleBinding") or name == "dit-services"


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    with Apart.made() as apart:
        yield apart


def test_keys_that_are_revoked_and_replaced_end_no_training(
    site: Site, apart: Apart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    where = replace(site, root=f"s3://{NAMESPACE}/rotated")
    settings = (f"cluster.namespace={apart.namespace}", "cluster.patience.api=60", "tracking.kind=none")
    study = where.study("rotated", *RECIPE, "train.steps=600", *settings)
    config = study.config.cluster
    file = tmp_path / "study.yaml"
    file.write_text(study.config.to_yaml())

    def newest() -> int:
        with study_store(Cluster.connect(), config, where.root) as store:
            return max(list_checkpoints(store, study.config, study.config.spec("mini-S/2")), default=0)

    dit = [sys.executable, "-m", "dit"]
    prepare = [*dit, "prepare", str(file), "--root", where.root]
    subprocess.run([*dit, "with-cluster", str(file), *prepare], check=True)
    arguments = ["--variant", "mini-S/2", "--root", where.root, "--image", site.image]
    # Here a launcher on this machine, which reads the secret; in a pod one with the keys of its start.
    here = subprocess.Popen([*dit, "launch", str(file), *arguments], stdout=subprocess.PIPE, text=True)
    until("a checkpoint is complete", lambda: newest() >= 40, 180)
    old = apart.pod("launcher", site.image, ["dit", "launch", *study.settings, *arguments[:2], *arguments[4:]])
    old.says("adopted", 60)
    first = {"AWS_ACCESS_KEY_ID": "first", "AWS_SECRET_ACCESS_KEY": "of-the-first-keys"}
    apart.revoke(first, {"AWS_ACCESS_KEY_ID": "second", "AWS_SECRET_ACCESS_KEY": "of-the-second-keys"})
    output, _ = here.communicate(timeout=600)
    print(output)  # pytest shows it where the test fails
    assert here.returncode == 0
    assert "the credentials were refused" in output
    with study_store(Cluster.connect(), config, where.root) as store:
        where.__dict__["store"] = store
        study.check_losses()
    ended = old.end(180)
    assert ended.code == 1
    assert "the credentials were refused" in ended.last_line
    assert f"kubectl describe secret -n {apart.namespace} {SECRET}" in ended.last_line
    assert ended.log.count("; retry in") >= 2
