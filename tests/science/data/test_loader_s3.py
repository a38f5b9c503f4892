"""Preparation into a bucket and training data out of it, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import torch
from dataset_fixtures import folder_study, image_folder
from moto.server import ThreadedMotoServer

from dit.data.loader import TrainingStream
from dit.data.shard_set import ShardSet
from dit.errors import DataError
from dit.stages import prepare
from dit.storage import Store, open_store
from dit.study import layout
from dit.study.config import TrainConfig


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    name = f"loader-{abs(hash(tmp_path)) % 10**9}"
    boto3.client("s3").create_bucket(Bucket=name)
    return open_store(f"s3://{name}/studies")


def test_a_dataset_in_a_bucket_trains_like_one_on_disk(bucket: Store, tmp_path: Path) -> None:
    config = folder_study(image_folder(tmp_path / "pictures"))
    local = open_store(tmp_path / "root")
    for part in (1, 2):
        prepare.run(config, bucket, (part, 2))
    assert prepare.merge(config, bucket) == prepare.run(config, local)
    assert prepare.run(config, bucket) == prepare.run(config, local)
    runs = []
    for store in (bucket, local):
        with TrainingStream(
            ShardSet.open(store, config),
            TrainConfig(steps=4, global_batch=8),
            rank=0,
            world_size=1,
            start_step=0,
            stop_step=4,
            prefetch=2,
        ) as batches:
            runs.append([batch.x0_NCHW for batch in batches])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_damaged_object_and_a_damaged_copy_are_named(bucket: Store, tmp_path: Path) -> None:
    config = folder_study(image_folder(tmp_path / "pictures"))
    prepare.run(config, bucket)
    ShardSet.open(bucket, config)
    key = f"{layout.dataset(config)}/{layout.shard(1)}"
    copy = bucket.local(key)
    data = bytearray(copy.read_bytes())
    data[700] ^= 1
    copy.write_bytes(data)
    with pytest.raises(DataError, match=layout.shard(1)):
        ShardSet.open(bucket, config)
    bucket.write(key, bytes(data))
    copy.unlink()
    with pytest.raises(DataError, match=layout.shard(1)) as error:
        ShardSet.open(bucket, config)
    assert "\n" not in str(error.value)
