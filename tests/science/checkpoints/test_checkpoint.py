"""Checkpoints: complete or absent, kept or retired, refused when they are not what was asked for."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from training_processes import checkpoint_meta

from dit.checkpoints.read import list_checkpoints, load_weights
from dit.checkpoints.write import CheckpointWriter, HostCopy
from dit.errors import DataError, MismatchError, StoreError
from dit.results.stages import Work, checkpoint
from dit.results.state import look
from dit.storage import Store, open_store
from dit.storage.file import FileStore
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta, FileEntry
from dit.study.study_file import load
from dit.study.variants import ModelSpec
from dit.training.plan import TrainPlan

STUDY = Path(__file__).parents[3] / "configs" / "digits.yaml"
VARIANT = "mini-S/2"


def study(*overrides: str) -> StudyConfig:
    return load(STUDY, ["evaluation.at_steps=[20]", "train.steps=60", "fit.keep_checkpoints=2", *overrides])


def plan(store: Store, config: StudyConfig, variant: str = VARIANT) -> TrainPlan:
    spec = config.spec(variant)
    return TrainPlan(Work(config, store), spec, config.fit_for(spec), "content", 0, config.train.steps, None, None)


def weights_of(config: StudyConfig, store: Store, spec: ModelSpec, step: int, kind: Literal["ema", "raw"]):
    meta = checkpoint_meta(config, store, spec, step)
    return load_weights(store, layout.checkpoint(config, spec, step), meta, kind)


def writer_for(plan: TrainPlan, before_completion: Callable[[], None]) -> CheckpointWriter:
    return CheckpointWriter(plan.store, plan.config, plan.spec, plan.retention, before_completion)


def tensors(value: float) -> dict[str, dict[str, Tensor]]:
    names = (layout.RAW_WEIGHTS, layout.EMA_WEIGHTS, layout.OPTIMIZER)
    return {
        file: {"weight": torch.full((3, 2), value + i), "step": torch.tensor(value)} for i, file in enumerate(names)
    }


def no_more() -> None:
    """Nothing to do before completion."""


def meta(config: StudyConfig, step: int, variant: str = VARIANT) -> CheckpointMeta:
    return CheckpointMeta(
        study=config.study,
        variant=variant,
        step=step,
        config_hash=config.training_hash(config.spec(variant)),
        dataset_content="content",
        precision="fp32",
        world_size=1,
        code_version="0",
        finite=True,
        files=(),
    )


def write(store: Store, config: StudyConfig, *steps: int) -> None:
    with writer_for(plan(store, config), no_more) as writer:
        for step in steps:
            writer.save(tensors(step), meta(config, step))


def test_round_trip_keeps_every_bit_and_names_the_weights(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    spec = config.spec(VARIANT)
    write(store, config, 20)
    raw, raw_hash = weights_of(config, store, spec, 20, "raw")
    ema, ema_hash = weights_of(config, store, spec, 20, "ema")
    assert torch.equal(raw["weight"], torch.full((3, 2), 20.0))
    assert torch.equal(ema["weight"], torch.full((3, 2), 21.0))
    written = {entry.name: entry.sha256 for entry in checkpoint_meta(config, store, spec, 20).files}
    assert (written[layout.RAW_WEIGHTS], written[layout.EMA_WEIGHTS]) == (raw_hash, ema_hash)


def test_what_is_written_is_the_moment_of_the_call(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    live = tensors(1.0)
    with writer_for(plan(store, config), no_more) as writer:
        writer.save(live, meta(config, 20))
        live[layout.RAW_WEIGHTS]["weight"].fill_(-1)
    raw, _ = weights_of(config, store, config.spec(VARIANT), 20, "raw")
    assert torch.equal(raw["weight"], torch.ones(3, 2))


def test_what_must_survive_with_a_checkpoint_is_saved_before_it_is_complete(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    seen: list[list[str]] = []
    with writer_for(plan(store, config), lambda: seen.append(store.list())) as writer:
        writer.save(tensors(1.0), meta(config, 20))
    assert [len(keys) for keys in seen] == [3]
    assert not any(key.endswith(layout.META) for key in seen[0])


def test_newest_and_milestones_are_kept(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    write(store, config, 10, 20, 30, 40, 50, 60)
    assert list_checkpoints(store, config, config.spec(VARIANT)) == [20, 40, 50, 60]


def test_what_a_longer_run_left_ahead_costs_an_earlier_step_nothing(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    spec = config.spec(VARIANT)
    write(store, config, 10, 20, 30, 40, 50, 60)
    earlier = study("evaluation.at_steps=[17, 20]")
    kept = []
    with writer_for(replace(plan(store, earlier), stop_step=17), no_more) as writer:
        for step in (5, 10, 15, 17):
            writer.save(tensors(step), meta(earlier, step))
            writer.wait()
            kept.append(list_checkpoints(store, earlier, spec))
    assert kept == [
        [5, 20, 40, 50, 60],
        [5, 10, 20, 40, 50, 60],
        [10, 15, 20, 40, 50, 60],
        [17, 20, 40, 50, 60],
    ]


class Interrupted(FileStore):
    """A store whose process dies before the last file: what a SIGKILL during the upload leaves."""

    def upload(self, path: Path, key: str) -> FileEntry:
        if key.endswith(layout.OPTIMIZER):
            raise StoreError("the machine went away")
        return super().upload(path, key)


def test_interrupted_upload_is_no_checkpoint_and_is_cleaned_up(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    spec = config.spec(VARIANT)
    write(store, config, 10)
    with pytest.raises(StoreError, match="went away"):
        write(Interrupted(tmp_path), config, 20)
    folder = layout.checkpoint(config, spec, 20)
    assert store.list(folder)
    assert list_checkpoints(store, config, spec) == [10]
    work = Work(config, store)
    assert look(work, checkpoint(work, spec, 20)).problem == "complete are: 10"
    write(store, config, 30)
    assert not store.list(folder)
    assert list_checkpoints(store, config, spec) == [10, 30]


def test_half_a_file_of_a_killed_upload_takes_no_room_for_ever(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    left, living = (
        tmp_path / layout.checkpoint(config, config.spec(VARIANT), step) / f".{layout.RAW_WEIGHTS}.0123.partial"
        for step in (20, 30)
    )
    for path in (left, living):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    with open(living, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write(store, config, 10)
        assert (left.exists(), living.exists()) == (False, True)


def test_failure_of_the_writer_surfaces_while_training_goes_on(tmp_path: Path) -> None:
    config = study()
    with writer_for(plan(Interrupted(tmp_path), config), no_more) as writer:
        writer.save(tensors(1.0), meta(config, 20))
        with pytest.raises(StoreError, match="went away"):
            poll_until_done(writer)


def poll_until_done(writer: CheckpointWriter) -> None:
    while writer.poll():
        time.sleep(0.01)


class Slow(FileStore):
    """A store that waits for the test before it takes anything."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go = threading.Event()

    def upload(self, path: Path, key: str) -> FileEntry:
        self.go.wait(30)
        return super().upload(path, key)


def test_saving_returns_before_the_store_has_anything(tmp_path: Path) -> None:
    config, store = study(), Slow(tmp_path)
    with writer_for(plan(store, config), no_more) as writer:
        writer.save(tensors(1.0), meta(config, 20))
        assert writer.poll()
        assert store.list() == []
        store.go.set()
    assert list_checkpoints(store, config, config.spec(VARIANT)) == [20]


def test_another_recipe_is_refused_with_both_hashes(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    write(store, config, 20)
    other = study("train.learning_rate=0.5")
    spec = config.spec(VARIANT)
    with pytest.raises(MismatchError) as caught:
        checkpoint_meta(other, store, spec, 20)
    assert config.training_hash(spec) in str(caught.value)
    assert other.training_hash(spec) in str(caught.value)


def test_another_variant_is_refused_by_name(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    write(store, config, 20)
    mine, theirs = (layout.checkpoint(config, config.spec(name), 20) for name in (VARIANT, "mini-B/2"))
    (tmp_path / theirs).parent.mkdir(parents=True)
    (tmp_path / mine).rename(tmp_path / theirs)
    with pytest.raises(MismatchError, match="checkpoint of mini-S/2"):
        checkpoint_meta(config, store, config.spec("mini-B/2"), 20)


def test_altered_file_is_refused_by_name(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    spec = config.spec(VARIANT)
    write(store, config, 20)
    path = tmp_path / layout.checkpoint(config, spec, 20) / layout.EMA_WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match=r"step-00000020/ema\.safetensors: .*remove .* to resume"):
        weights_of(config, store, spec, 20, "ema")
    weights_of(config, store, spec, 20, "raw")


def test_host_copy_reuses_its_buffers() -> None:
    host = HostCopy()
    first = host.take(tensors(1.0))[layout.RAW_WEIGHTS]["weight"]
    second = host.take(tensors(2.0))[layout.RAW_WEIGHTS]["weight"]
    assert first.data_ptr() == second.data_ptr()
    assert torch.equal(second, torch.full((3, 2), 2.0))


def test_no_room_for_the_scratch_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = study()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(StoreError, match="TMPDIR"):
        write(open_store(tmp_path), config, 20)
    assert list_checkpoints(open_store(tmp_path), config, config.spec(VARIANT)) == []


def test_a_first_copy_takes_no_new_memory_where_it_was_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    files = tensors(1.0)
    host = HostCopy()
    host.reserve(files)
    monkeypatch.setattr(torch, "empty", None)
    taken = host.take(files)
    for named in files.values():
        for tensor in named.values():
            tensor.zero_()
    torch.testing.assert_close(taken, tensors(1.0))
