"""Scenario 9: what every further try would end alike ends a job at once; what heals is waited for."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from kube import NAMESPACE, apply, get, kubectl
from studies import Site

RECIPE = ("train.steps=400", "fit.checkpoint_every=40", "cluster.replicas=2")
PYTORCHJOB = "pytorchjobs.kubeflow.org"
SECRET = "dit-s3"
REVOKED_SECONDS = 30
pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(1200)]


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


def keys() -> dict[str, str]:
    manifest = get("secret", SECRET)
    assert manifest is not None
    return {name: base64.b64decode(value).decode() for name, value in manifest["data"].items()}


def put(data: dict[str, str]) -> None:
    metadata = {"name": SECRET, "namespace": NAMESPACE}
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})


def serve_with(data: dict[str, str]) -> None:
    """Restart the store, which from then on accepts only these keys."""
    put(data)
    kubectl("rollout", "restart", "deployment/s3", "-n", NAMESPACE)
    kubectl("rollout", "status", "deployment/s3", "-n", NAMESPACE, "--timeout=240s")


@contextmanager
def revoked(before: dict[str, str], after: dict[str, str]) -> Iterator[None]:
    """The store accepts only the keys `after`; the secret has them only after a while."""
    serve_with(after)
    try:
        put(before)
        time.sleep(REVOKED_SECONDS)
        put(after)
        yield
    finally:
        serve_with(before)


@pytest.mark.usefixtures("dataset")
def test_keys_that_are_revoked_and_replaced_end_neither_job_nor_training(site: Site) -> None:
    # The launcher's pod has the keys of its start, and may not read the secret.
    study = site.study("rotated", *RECIPE, "train.steps=600", "cluster.patience.api=40")
    launcher = study.launch()
    study.past(40)
    before = keys()
    with revoked(before, {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}):
        ended = launcher.end(600)
        assert ended.code == 1
        assert "the credentials were refused" in ended.last_line
        assert f"kubectl describe secret -n {NAMESPACE} {SECRET}" in ended.last_line
        assert ended.log.count("; retry in") >= 2
        # The training went on: a new launcher finds it complete.
        again = study.launch().end(120)
        assert again.code == 0, again.log
    study.check_losses()
