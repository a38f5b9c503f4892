"""Scenario 9: what every further try would end alike ends a job at once; what heals is waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from apart import S3_SECRET, Apart
from kube import NAMESPACE, get, until
from studies import Site

from dit.checkpoints.read import list_checkpoints
from pipelines.cluster.client import Cluster
from pipelines.cluster.store_access import study_store

RECIPE = ("train.steps=400", "fit.checkpoint_every=40", "cluster.replicas=2")
PYTORCHJOB = "pytorchjobs.kubeflow.org"
FIRST = {"AWS_ACCESS_KEY_ID": "first", "AWS_SECRET_ACCESS_KEY": "of-the-first-keys"}
SECOND = {"AWS_ACCESS_KEY_ID": "second", "AWS_SECRET_ACCESS_KEY": "of-the-second-keys"}
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


@pytest.mark.long
def test_keys_that_are_revoked_and_replaced_end_no_training(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Apart.with_a_store("apart", FIRST) as apart:
        check_rotation(site, apart, tmp_path, monkeypatch)


def check_rotation(site: Site, apart: Apart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
            return max(list_checkpoints(store, study.config, study.config.run("mini-S/2")), default=0)

    dit = [sys.executable, "-m", "dit"]
    prepare = [*dit, "prepare", str(file), "--root", where.root]
    subprocess.run([*dit, "with-cluster", str(file), *prepare], check=True)
    arguments = ["--variant", "mini-S/2", "--root", where.root, "--image", site.image]
    # Here a launcher on this machine, which reads the secret; in a pod one with the keys of its start.
    here = subprocess.Popen([*dit, "launch", str(file), *arguments], stdout=subprocess.PIPE, text=True)
    until("a checkpoint is complete", lambda: newest() >= 40, 180)
    old = apart.pod("launcher", site.image, ["dit", "launch", *study.settings, *arguments[:2], *arguments[4:]])
    old.says("adopted", 60)
    apart.revoke(FIRST, SECOND)
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
    assert f"kubectl describe secret -n {apart.namespace} {S3_SECRET}" in ended.last_line
    assert ended.log.count("; retry in") >= 2
