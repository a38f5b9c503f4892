"""The training stage in one process: record, journal, checkpoints, resume, refusals."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from dataset_fixtures import flip_bit
from training_processes import checkpoint_meta

from dit.checkpoints.read import list_checkpoints
from dit.errors import ConfigError, DataError, DivergedError, InputError, MismatchError, StoreError, UnhealthyError
from dit.health.log import read_events
from dit.runtime.distributed import Ranks
from dit.stages import prepare, train
from dit.storage import Store, open_store, read_record
from dit.storage.file import FileStore
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import FileEntry, HealthEvent, TrainRecord
from dit.study.study_file import load
from dit.tracking import read_points

ROOT = Path(__file__).parents[3]
VARIANT = "mini-S/2"
SMALL = (
    "train.steps=12",
    "train.global_batch=12",
    "evaluation.at_steps=[4, 8]",
    "fit.checkpoint_every=2",
    "fit.keep_checkpoints=1",
    "fit.log_every=1",
    "fit.threads=1",
    "sampling.steps=2",
    "sampling.num_samples=4",
    "tracking.kind=none",
)


def study(name: str, *overrides: str) -> StudyConfig:
    return load(ROOT / "configs" / "digits.yaml", [*SMALL, f"study={name}", *overrides])


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """The number of threads that a training sets must not outlive these tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    opened = open_store(tmp_path_factory.mktemp("train"))
    prepare.run(study("any"), opened)
    return opened


def losses(store: Store, config: StudyConfig) -> dict[int, float]:
    logged = read_points(config, store, config.run(VARIANT))
    return {point.step: point.value for point in logged if point.key == "loss"}


def record_key(config: StudyConfig) -> str:
    return layout.train_record(config, config.run(VARIANT))


@pytest.fixture(scope="module")
def straight(store: Store) -> tuple[StudyConfig, TrainRecord]:
    config = study("straight")
    return config, train.run(config, store, VARIANT)


def test_record_has_steps_checkpoints_rate_and_final_loss(
    store: Store, straight: tuple[StudyConfig, TrainRecord]
) -> None:
    config, record = straight
    assert record == read_record(store, record_key(config), TrainRecord)
    assert (record.steps, record.checkpoints, record.world_size) == (12, (4, 8, 12), 1)
    assert record.config_hash == config.training_hash(config.run(VARIANT))
    assert record.parameters == config.spec(VARIANT).parameters(config.dataset.inputs)
    assert record.images_per_second > 0
    assert record.train_seconds > 0
    assert record.peak_memory_bytes > 1 << 20
    assert record.final_loss == losses(store, config)[12]
    # The evaluated ones with the last, and the newest of the others.
    assert list_checkpoints(store, config, config.spec(VARIANT)) == [4, 8, 10, 12]


def test_all_metrics_are_logged_at_every_window(store: Store, straight: tuple[StudyConfig, TrainRecord]) -> None:
    config, _ = straight
    steps: dict[str, list[int]] = {}
    for point in read_points(config, store, config.run(VARIANT)):
        assert math.isfinite(point.value)
        steps.setdefault(point.key, []).append(point.step)
    measured = {"loss", "loss_mse", "loss_vb", "grad_norm", "images_per_second", "mfu", "memory_bytes"}
    steps = {key: at for key, at in steps.items() if not key.startswith("health/")}
    assert set(steps) == measured | {"parameters_m", "gflops"}
    assert all(steps[key] == list(range(1, 13)) for key in measured)


def test_logged_losses_are_means_over_their_window(store: Store, straight: tuple[StudyConfig, TrainRecord]) -> None:
    by_step = losses(store, straight[0])
    config = study("windows", "fit.log_every=5")
    train.run(config, store, VARIANT)
    # Kept checkpoints, at 4, 8 and 12, close a window, too.
    windows = {4: range(1, 5), 5: [5], 8: range(6, 9), 10: range(9, 11), 12: range(11, 13)}
    assert losses(store, config) == {
        end: pytest.approx(sum(by_step[step] for step in steps) / len(steps), rel=1e-5)
        for end, steps in windows.items()
    }


@pytest.mark.parametrize("log_every", [1, 5])
def test_a_training_that_stops_at_each_evaluated_step_gives_the_same_bytes(store: Store, log_every: int) -> None:
    whole, parts = (study(f"{name}-{log_every}", f"fit.log_every={log_every}") for name in ("whole", "parts"))
    run, record = whole.run(VARIANT), train.run(whole, store, VARIANT)
    for step in (4, 8, 12):
        assert train.run_until(parts, store, VARIANT, step).step == step
        assert max(list_checkpoints(store, parts, run)) == step
        assert store.exists(record_key(parts)) is (step == 12)
    for step in (4, 8, 12):
        folders = [layout.checkpoint(config, run, step) for config in (whole, parts)]
        for name in (layout.RAW_WEIGHTS, layout.EMA_WEIGHTS, layout.OPTIMIZER):
            assert store.read(f"{folders[0]}/{name}") == store.read(f"{folders[1]}/{name}")
    assert losses(store, parts) == losses(store, whole)
    measured = {"study", "images_per_second", "train_seconds", "peak_memory_bytes"}
    again = train.run(parts, store, VARIANT)
    assert again.model_dump(exclude=measured) == record.model_dump(exclude=measured)


def test_a_step_that_is_not_evaluated_is_refused_with_those_that_are(store: Store) -> None:
    with pytest.raises(ConfigError, match="--until 5: is not an evaluated step; give one of 4, 8, 12"):
        train.run_until(study("refused"), store, VARIANT, 5)


def test_longer_training_extends_a_shorter_one(store: Store, straight: tuple[StudyConfig, TrainRecord]) -> None:
    short, long = study("extended", "train.steps=8"), study("extended", "train.steps=12")
    first = train.run(short, store, VARIANT)
    second = train.run(long, store, VARIANT)
    assert (first.steps, second.steps, second.checkpoints) == (8, 12, (4, 8, 12))
    assert second.train_seconds > first.train_seconds
    assert losses(store, long) == losses(store, straight[0])
    assert train.run(short, store, VARIANT) == second


def test_checkpoint_added_later_is_made_from_the_one_before_it(
    store: Store, straight: tuple[StudyConfig, TrainRecord]
) -> None:
    before = study("later")
    first = train.run(before, store, VARIANT)
    run = before.run(VARIANT)
    untouched = store.read(f"{layout.checkpoint(before, run, 8)}/{layout.META}")
    wider = study("later", "evaluation.at_steps=[4, 6, 8]")
    second = train.run(wider, store, VARIANT)
    assert second == first.model_copy(update={"checkpoints": (4, 6, 8, 12)})
    assert 6 in list_checkpoints(store, wider, run)
    assert store.read(f"{layout.checkpoint(before, run, 8)}/{layout.META}") == untouched
    assert losses(store, wider) == losses(store, straight[0])


def test_complete_checkpoints_are_not_written_again(store: Store, straight: tuple[StudyConfig, TrainRecord]) -> None:
    config = study("passed", "train.steps=10")
    train.run(config, store, VARIANT)
    run = config.run(VARIANT)
    kept = [f"{layout.checkpoint(config, run, step)}/{layout.META}" for step in (4, 8, 10)]
    before = [store.read(key) for key in kept]
    wider = study("passed", "evaluation.at_steps=[3, 4, 8]", "train.steps=12")
    record = train.run(wider, store, VARIANT)
    assert record.checkpoints == (3, 4, 8, 10, 12)
    assert checkpoint_meta(wider, store, run, 3).train_seconds > 0
    assert [store.read(key) for key in kept] == before
    assert losses(store, wider) == losses(store, straight[0])


def test_checkpoint_that_was_removed_is_made_again(store: Store, straight: tuple[StudyConfig, TrainRecord]) -> None:
    config = study("removed")
    record = train.run(config, store, VARIANT)
    run = config.run(VARIANT)
    for gone in (4, 12):
        store.delete(layout.checkpoint(config, run, gone))
        assert train.run(config, store, VARIANT) == record
        assert {4, 8, 12} <= set(list_checkpoints(store, config, run))
    assert losses(store, config) == losses(store, straight[0])


def test_file_that_is_lost_from_a_checkpoint_is_made_again(
    store: Store, straight: tuple[StudyConfig, TrainRecord]
) -> None:
    config = study("lost-file", "train.steps=8")
    train.run(config, store, VARIANT)
    folder = layout.checkpoint(config, config.run(VARIANT), 8)
    before = store.read(f"{folder}/{layout.EMA_WEIGHTS}")
    store.delete(f"{folder}/{layout.EMA_WEIGHTS}")
    train.run(config, store, VARIANT)
    assert store.read(f"{folder}/{layout.EMA_WEIGHTS}") == before
    assert losses(store, config) == {key: value for key, value in losses(store, straight[0]).items() if key <= 8}


@pytest.mark.parametrize("checkpoint", [None, 4])
def test_lost_record_is_made_again_from_the_last_checkpoint(store: Store, checkpoint: int | None) -> None:
    """Also if an earlier checkpoint is lost with it, and is made again first."""
    config = study(f"lost-record-{checkpoint or 'only'}")
    before = train.run(config, store, VARIANT)
    points = read_points(config, store, config.run(VARIANT))
    store.delete(record_key(config))
    if checkpoint is not None:
        store.delete(layout.checkpoint(config, config.run(VARIANT), checkpoint))
    again = train.run(config, store, VARIANT)
    for field in ("steps", "checkpoints", "final_loss", "config_hash", "images_per_second", "train_seconds"):
        assert getattr(again, field) == getattr(before, field), field
    assert read_points(config, store, config.run(VARIANT)) == points


def test_value_that_is_not_finite_stops_the_run_and_names_the_step(store: Store) -> None:
    rate = ("train.learning_rate=1e30", "health.recipe=off", "health.learning=off")
    config = study("diverged", *rate, "fit.checkpoint_every=1", "fit.log_every=4")
    run = config.run(VARIANT)
    with pytest.raises(
        DivergedError, match=r"mini-S/2: step (\d+): .* is not finite; the last good checkpoint"
    ) as caught:
        train.run(config, store, VARIANT)
    assert read_record(store, record_key(config), TrainRecord) is None
    *_, line = store.read(layout.health(config, run)).splitlines()
    event = HealthEvent.model_validate(json.loads(line))
    assert (event.check, event.action, event.message) == ("finite", "stop", str(caught.value))
    complete = list_checkpoints(store, config, run)
    assert all(step < event.step for step in complete)
    if complete:
        assert layout.checkpoint(config, run, complete[-1]) in event.message
    with pytest.raises(DivergedError, match=f"step {event.step}:"):
        train.run(config, store, VARIANT)
    events = read_events(store, layout.health(config, run))
    assert [event.check for event in events if event.action == "stop"] == ["finite", "finite"]


def test_value_that_is_not_finite_is_the_finding_before_the_first_window_is_logged(store: Store) -> None:
    late = ("evaluation.at_steps=[12]", "fit.log_every=12", "fit.checkpoint_every=12")
    config = study("early", "train.learning_rate=1e30", "health.recipe=off", *late)
    with pytest.raises(UnhealthyError, match=r"mini-S/2: mse of step \d is not finite"):
        train.run(config, store, VARIANT)


def test_damaged_checkpoint_is_refused_and_resume_uses_the_one_before(
    store: Store, straight: tuple[StudyConfig, TrainRecord]
) -> None:
    config = study("damaged", "train.steps=8")
    train.run(config, store, VARIANT)
    folder = layout.checkpoint(config, config.run(VARIANT), 8)
    flip_bit(store.local(f"{folder}/{layout.OPTIMIZER}"))
    longer = study("damaged", "train.steps=12")
    with pytest.raises(DataError, match=r"step-00000008/optimizer\.safetensors: .*remove .*step-00000008"):
        train.run(longer, store, VARIANT)
    store.delete(folder)
    train.run(longer, store, VARIANT)
    assert losses(store, longer) == losses(store, straight[0])


def test_another_recipe_is_refused_before_work(store: Store, straight: tuple[StudyConfig, TrainRecord]) -> None:
    config, _ = straight
    other = study("straight", "train.learning_rate=0.5")
    with pytest.raises(MismatchError, match=r"made with train\.learning_rate=0\.0025 instead of 0\.5; restore"):
        train.run(other, store, VARIANT)
    record = store.read(record_key(config))
    store.delete(record_key(config))
    with pytest.raises(MismatchError, match="checkpoints/step-"):
        train.run(other, store, VARIANT)
    store.write(record_key(config), record)


def test_shards_that_changed_under_a_training_are_refused(store: Store) -> None:
    config = study("shards", "train.steps=8")
    train.run(config, store, VARIANT)
    run = config.run(VARIANT)
    key = f"{layout.checkpoint(config, run, 8)}/{layout.META}"
    meta = checkpoint_meta(config, store, run, 8)
    store.write(key, meta.model_copy(update={"dataset_content": "other"}).to_json())
    with pytest.raises(MismatchError, match="trained on shards other"):
        train.run(study("shards", "train.steps=12"), store, VARIANT)


class WaitingStore(FileStore):
    """A store that finishes an upload only after eight more collectives."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.collectives = 0

    def upload(self, path: Path, key: str) -> FileEntry:
        until, end = self.collectives + 8, time.monotonic() + 500
        while self.collectives < until:
            if time.monotonic() > end:
                raise StoreError(f"{key}: no collective during a slow upload")
            time.sleep(0.01)
        return super().upload(path, key)


def test_collectives_go_on_during_a_slow_upload(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks wait in collectives, whose timeout would otherwise fail them."""
    assert isinstance(store, FileStore)
    slow, maximum = WaitingStore(store.root), Ranks.maximum

    def counted(ranks: Ranks, value: int) -> int:
        slow.collectives += 1
        return maximum(ranks, value)

    monkeypatch.setattr(Ranks, "maximum", counted)
    config = study("slow", "train.steps=6", "evaluation.at_steps=[4]", "fit.checkpoint_every=1")
    assert train.run(config, slow, VARIANT).checkpoints == (4, 6)


def test_full_disk_is_a_one_line_error_and_leaves_checkpoints_intact(
    store: Store, straight: tuple[StudyConfig, TrainRecord], tmp_path: Path
) -> None:
    short, long = study("full", "train.steps=4", "evaluation.at_steps=[4]"), study("full")
    train.run(short, store, VARIANT)
    folder = layout.checkpoints(short, short.run(VARIANT))
    before = {key: store.read(key) for key in store.list(folder)}
    (tmp_path / "study.yaml").write_text(long.to_yaml())
    # A limit on file sizes acts like a full disk: the journal fits, a checkpoint does not.
    done = subprocess.run(
        [sys.executable, "-m", "dit", "train", tmp_path / "study.yaml", "--variant", VARIANT, "--root", store.url],
        env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"dit: [^\n]*cannot write [^\n]*File too large[^\n]*run again", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert {key: store.read(key) for key in store.list(folder)} == before
    train.run(long, store, VARIANT)
    assert losses(store, long) == losses(store, straight[0])


class ReadOnly(FileStore):
    def write(self, key: str, data: bytes) -> FileEntry:
        raise StoreError(f"{key}: {len(data)} bytes refused")


def test_store_that_cannot_be_written_is_refused(store: Store) -> None:
    assert isinstance(store, FileStore)
    with pytest.raises(InputError, match="not writable"):
        train.run(study("readonly"), ReadOnly(store.root), VARIANT)
    assert not store.list("studies/readonly")
