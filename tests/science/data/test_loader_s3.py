"""Preparation into a bucket and training data out of it, over HTTP."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from dataset_fixtures import flip_bit, folder_study, image_folder

from dit.data.loader import TrainingStream
from dit.data.shard_set import ShardSet
from dit.errors import DataError
from dit.stages import prepare
from dit.storage import Store, open_store
from dit.study import layout
from dit.study.config import TrainConfig


def test_dataset_in_a_bucket_trains_like_a_local_one(s3_store: Store, tmp_path: Path) -> None:
    config = folder_study(image_folder(tmp_path / "pictures"))
    local = open_store(tmp_path / "root")
    for part in (1, 2):
        prepare.run(config, s3_store, (part, 2))
    assert prepare.merge(config, s3_store) == prepare.run(config, local)
    assert prepare.run(config, s3_store) == prepare.run(config, local)
    train, runs = TrainConfig(steps=4, global_batch=8), []
    for store in (s3_store, local):
        shards = ShardSet.open(store, config)
        stream = TrainingStream(shards, train, rank=0, world_size=1, start_step=0, stop_step=4, prefetch=2)
        with closing(stream):
            runs.append([batch.x0_NCHW for batch in stream])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_damaged_object_and_damaged_copy_are_refused_by_name(s3_store: Store, tmp_path: Path) -> None:
    config = folder_study(image_folder(tmp_path / "pictures"))
    prepare.run(config, s3_store)
    ShardSet.open(s3_store, config)
    key = f"{layout.dataset(config)}/{layout.shard(1)}"
    copy = s3_store.local(key)
    flip_bit(copy, 700)
    data = copy.read_bytes()
    with pytest.raises(DataError, match=layout.shard(1)):
        ShardSet.open(s3_store, config)
    s3_store.write(key, data)
    copy.unlink()
    with pytest.raises(DataError, match=layout.shard(1)) as error:
        ShardSet.open(s3_store, config)
    assert "\n" not in str(error.value)
