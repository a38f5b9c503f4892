"""Checkpoints: atomic writes, removal of old ones, refusal of damaged or foreign ones."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import study_records
import torch
from dataset_fixtures import flip_bit
from torch import Tensor
from training_processes import checkpoint_meta

from dit.checkpoints.read import list_checkpoints, load_weights
from dit.checkpoints.retention import Retention
from dit.checkpoints.write import CheckpointWriter, HostCopy
from dit.errors import DataError, StoreError
from dit.results.stages import Work, checkpoint, milestones
from dit.results.state import look
from dit.storage import Store, open_store
from dit.storage.file import FileStore
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta, FileEntry
from dit.study.runs import Run
from dit.study.study_file import load

STUDY = Path(__file__).parents[3] / "configs" / "digits.yaml"
VARIANT = "mini-S/2"


def study(*overrides: str) -> StudyConfig:
    return load(STUDY, ["evaluation.at_steps=[20]", "train.steps=60", "fit.keep_checkpoints=2", *overrides])


def weights_of(
    config: StudyConfig, store: Store, run: Run, step: int, kind: Literal["ema", "raw"]
) -> tuple[dict[str, Tensor], str]:
    meta = checkpoint_meta(config, store, run, step)
    return load_weights(store, layout.checkpoint(config, run, step), meta, kind)


def writer(
    store: Store, config: StudyConfig, stop_step: int = 60, before_completion: Callable[[], None] = lambda: None
) -> CheckpointWriter:
    retention = Retention(config.fit.keep_checkpoints, milestones(config), stop_step)
    return CheckpointWriter(store, config, config.run(VARIANT), retention, before_completion)


def tensors(value: float) -> dict[str, dict[str, Tensor]]:
    names = (layout.RAW_WEIGHTS, layout.EMA_WEIGHTS, layout.OPTIMIZER)
    return {
        file: {"weight": torch.full((3, 2), value + i), "step": torch.tensor(value)} for i, file in enumerate(names)
    }


def meta(config: StudyConfig, step: int) -> CheckpointMeta:
    return study_records.checkpoint_meta(config, config.run(VARIANT), step)


def write(store: Store, config: StudyConfig, *steps: int) -> None:
    with writer(store, config) as opened:
        for step in steps:
            opened.save(tensors(step), meta(config, step))


def test_round_trip_keeps_every_bit_and_names_the_weights(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    run = config.run(VARIANT)
    write(store, config, 20)
    raw, raw_hash = weights_of(config, store, run, 20, "raw")
    ema, ema_hash = weights_of(config, store, run, 20, "ema")
    assert torch.equal(raw["weight"], torch.full((3, 2), 20.0))
    assert torch.equal(ema["weight"], torch.full((3, 2), 21.0))
    written = {entry.name: entry.sha256 for entry in checkpoint_meta(config, store, run, 20).files}
    assert (written[layout.RAW_WEIGHTS], written[layout.EMA_WEIGHTS]) == (raw_hash, ema_hash)


def test_save_writes_the_values_at_the_time_of_the_call(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    live = tensors(1.0)
    with writer(store, config) as opened:
        opened.save(live, meta(config, 20))
        live[layout.RAW_WEIGHTS]["weight"].fill_(-1)
    raw, _ = weights_of(config, store, config.run(VARIANT), 20, "raw")
    assert torch.equal(raw["weight"], torch.ones(3, 2))


def test_before_completion_is_called_before_meta_json_is_written(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    listings: list[list[str]] = []
    with writer(store, config, before_completion=lambda: listings.append(store.list())) as opened:
        opened.save(tensors(1.0), meta(config, 20))
    assert [len(keys) for keys in listings] == [3]
    assert not any(key.endswith(layout.META) for key in listings[0])


def test_newest_and_milestones_are_kept(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    write(store, config, 10, 20, 30, 40, 50, 60)
    assert list_checkpoints(store, config, config.run(VARIANT)) == [20, 40, 50, 60]


def test_checkpoints_beyond_stop_step_do_not_displace_earlier_ones(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    run = config.run(VARIANT)
    write(store, config, 10, 20, 30, 40, 50, 60)
    earlier = study("evaluation.at_steps=[17, 20]")
    kept = []
    with writer(store, earlier, stop_step=17) as opened:
        for step in (5, 10, 15, 17):
            opened.save(tensors(step), meta(earlier, step))
            opened.wait()
            kept.append(list_checkpoints(store, earlier, run))
    assert kept == [
        [5, 20, 40, 50, 60],
        [5, 10, 20, 40, 50, 60],
        [10, 15, 20, 40, 50, 60],
        [17, 20, 40, 50, 60],
    ]


class Interrupted(FileStore):
    """A store that fails at the last file and leaves what a SIGKILL during the upload leaves."""

    def upload(self, path: Path, key: str) -> FileEntry:
        if key.endswith(layout.OPTIMIZER):
            raise StoreError("the machine went away")
        return super().upload(path, key)


def test_interrupted_upload_is_incomplete_and_is_removed(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    run = config.run(VARIANT)
    write(store, config, 10)
    with pytest.raises(StoreError, match="went away"):
        write(Interrupted(tmp_path), config, 20)
    folder = layout.checkpoint(config, run, 20)
    assert store.list(folder)
    assert list_checkpoints(store, config, run) == [10]
    work = Work(config, store)
    assert look(work, checkpoint(work, run, 20)).problem == "complete are: 10"
    write(store, config, 30)
    assert not store.list(folder)
    assert list_checkpoints(store, config, run) == [10, 30]


def test_partial_files_of_a_killed_upload_are_removed(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    left, living = (
        tmp_path / layout.checkpoint(config, config.run(VARIANT), step) / f".{layout.RAW_WEIGHTS}.0123.partial"
        for step in (20, 30)
    )
    for path in (left, living):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    with open(living, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write(store, config, 10)
        assert (left.exists(), living.exists()) == (False, True)


def test_poll_raises_the_error_of_the_writer_thread(tmp_path: Path) -> None:
    config = study()
    with writer(Interrupted(tmp_path), config) as opened:
        opened.save(tensors(1.0), meta(config, 20))
        with pytest.raises(StoreError, match="went away"):
            poll_until_done(opened)


def poll_until_done(opened: CheckpointWriter) -> None:
    while opened.poll():
        time.sleep(0.01)


class Slow(FileStore):
    """A store that waits for the test before it takes anything."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go = threading.Event()

    def upload(self, path: Path, key: str) -> FileEntry:
        self.go.wait(30)
        return super().upload(path, key)


def test_save_does_not_wait_for_the_store(tmp_path: Path) -> None:
    config, store = study(), Slow(tmp_path)
    with writer(store, config) as opened:
        opened.save(tensors(1.0), meta(config, 20))
        assert opened.poll()
        assert store.list() == []
        store.go.set()
    assert list_checkpoints(store, config, config.run(VARIANT)) == [20]


def test_altered_file_is_refused_by_name(tmp_path: Path) -> None:
    store, config = open_store(tmp_path), study()
    run = config.run(VARIANT)
    write(store, config, 20)
    flip_bit(tmp_path / layout.checkpoint(config, run, 20) / layout.EMA_WEIGHTS)
    with pytest.raises(DataError, match=r"step-00000020/ema\.safetensors: .*remove .* to resume"):
        weights_of(config, store, run, 20, "ema")
    weights_of(config, store, run, 20, "raw")


def test_host_copy_reuses_its_buffers() -> None:
    host = HostCopy()
    first = host.take(tensors(1.0))[layout.RAW_WEIGHTS]["weight"]
    second = host.take(tensors(2.0))[layout.RAW_WEIGHTS]["weight"]
    assert first.data_ptr() == second.data_ptr()
    assert torch.equal(second, torch.full((3, 2), 2.0))


def test_missing_scratch_folder_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = study()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(StoreError, match="TMPDIR"):
        write(open_store(tmp_path), config, 20)
    assert list_checkpoints(open_store(tmp_path), config, config.run(VARIANT)) == []


def test_copy_allocates_nothing_after_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    files = tensors(1.0)
    host = HostCopy()
    host.reserve(files)
    monkeypatch.setattr(torch, "empty", None)
    taken = host.take(files)
    for named in files.values():
        for tensor in named.values():
            tensor.zero_()
    torch.testing.assert_close(taken, tensors(1.0))
