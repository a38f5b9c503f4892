"""How far each stage of a study is, read from its store."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_records import checkpoint_meta, fill, train_record, write_rank_progress

from dit.health.log import add_event
from dit.results.progress import StageProgress, pace_line, progress
from dit.results.stages import Work, step_names
from dit.storage import Store, open_store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import HealthEvent
from dit.study.study_file import load
from dit.tracking.journal import Entry

CONFIG = Path(__file__).parents[3] / "configs" / "digits.yaml"
TRAIN, EVALUATE = "train mini-S/2", "evaluate mini-S/2"


@pytest.fixture
def config() -> StudyConfig:
    return load(CONFIG, ["variants=[mini-S/2, mini-B/2]"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def stage(config: StudyConfig, store: Store, name: str) -> StageProgress:
    return next(item for item in progress(Work(config, store)) if item.name == name)


def write_losses(config: StudyConfig, store: Store, *losses: tuple[int, float]) -> None:
    lines = [Entry("run", {"id": "r", "name": "n", "hash": "h", "tags": {}}).to_line()]
    lines += [Entry("metrics", {"loss": value, "grad_norm": 1.0}, step).to_line() for step, value in losses]
    store.write(layout.journal(config, config.runs[0]), b"".join(lines))


def test_a_study_that_has_not_begun_has_every_stage_before_it(config: StudyConfig, store: Store) -> None:
    result = progress(Work(config, store))
    assert [item.name for item in result] == step_names(config)
    assert not any(item.complete for item in result)


def test_the_stage_that_a_check_stopped_has_its_name_and_step(config: StudyConfig, store: Store) -> None:
    event = HealthEvent(check="ema", step=5, value=9.0, bound="below 1", action="stop", message="no EMA")
    add_event(store, layout.health(config, config.runs[0]), event)
    assert {item.name: item.stopped for item in progress(Work(config, store)) if item.stopped} == {
        TRAIN: "stopped by ema at step 5"
    }


def test_training_under_way_is_as_far_as_its_newest_loss_or_checkpoint(config: StudyConfig, store: Store) -> None:
    write_losses(config, store, (20, 0.9), (60, 0.5), (40, 0.7))
    result = stage(config, store, TRAIN)
    assert (result.done, result.total) == (60, 1500)
    assert result.last is not None
    assert (result.last.name, result.last.step, result.last.value) == ("loss", 60, 0.5)
    meta = checkpoint_meta(config, config.runs[0], 200)
    write_record(store, f"{layout.checkpoint(config, config.runs[0], 200)}/{layout.META}", meta)
    store.write(f"{layout.checkpoint(config, config.runs[0], 400)}/model.safetensors", b"still being written")
    assert stage(config, store, TRAIN).done == 200


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        ([0.5], ""),
        ([0.5, 0.6], "rank 0 0.5000, rank 1 0.6000"),
        ([0.5, 2.0], "rank 0 0.5000, rank 1 2.000; the others wait for rank 1 on w-1"),
        ([0.5] * 9 + [2.0], "rank 0 0.5000, median 0.5000, rank 9 2.000; the others wait for rank 9 on w-9"),
    ],
)
def test_ranks_of_a_training_under_way_have_their_own_seconds_per_step(
    config: StudyConfig, store: Store, seconds: list[float], line: str
) -> None:
    write_rank_progress(store, config, config.runs[0], seconds)
    ranks = stage(config, store, TRAIN).ranks
    assert [record.own_seconds for record in ranks] == seconds
    assert pace_line(ranks) == (f"seconds of own computing per step: {line}" if line else "")


def test_training_is_complete_when_its_record_and_checkpoints_say_so(config: StudyConfig, store: Store) -> None:
    run = config.runs[0]
    write_losses(config, store, (1500, 0.5))
    assert not stage(config, store, TRAIN).complete
    fill(store, config)
    result = stage(config, store, TRAIN)
    assert result.complete
    assert result.seconds == train_record(config, run).train_seconds
    longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": 3000})})
    assert not stage(longer, store, TRAIN).complete


def test_the_newest_metrics_are_shown(config: StudyConfig, store: Store) -> None:
    fill(store, config)
    store.delete(layout.metrics(config, config.runs[0], 1500))
    result = stage(config, store, EVALUATE)
    assert (result.done, result.total) == (2, 3)
    assert result.last is not None
    assert (result.last.name, result.last.step) == ("fd_digits", 1000)


def test_a_training_under_way_has_a_forecast_of_its_end(config: StudyConfig, store: Store) -> None:
    write_losses(config, store, (780, 0.5))
    points = [Entry("metrics", {"health/ratio_b": step**-0.1}, step).to_line() for step in range(20, 800, 20)]
    store.write(
        layout.journal(config, config.specs[0]), store.read(layout.journal(config, config.specs[0])) + b"".join(points)
    )
    assert stage(config, store, TRAIN).outlook == f"R_b {780**-0.1:.2f}, {1500**-0.1:.2f} forecast at 1500"


def test_a_training_that_has_hardly_begun_has_no_forecast(config: StudyConfig, store: Store) -> None:
    write_losses(config, store, (20, 0.9))
    assert stage(config, store, TRAIN).outlook == ""
