"""Ranks that do not do the same work never take a step, and replicas that differ are never saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_processes import OVERRIDES, ROOT, VARIANT, finish, patched, start_ranks, study

from dit.checkpoints.read import list_checkpoints
from dit.errors import FinalError
from dit.health.log import read_events
from dit.health.ranks import study_facts
from dit.stages import prepare, train
from dit.storage import Store, open_store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import HealthEvent
from dit.study.study_file import load
from dit.tracking import read_points

SHORT = ("train.steps=14",)
DRIFT = """
from dit.training import trainer
step = trainer.Trainer.step
def drifting(self, batch):
    step(self, batch)
    if self.steps_done == 9:
        next(iter(self.ema.tensors.values())).view(-1)[0] += 1e-6
trainer.Trainer.step = drifting
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    opened = open_store(tmp_path_factory.mktemp("ranks"))
    prepare.run(study("any"), opened)
    return opened


def events(store: Store, config: StudyConfig) -> list[HealthEvent]:
    return [event for event in read_events(store, layout.health(config, config.run(VARIANT))) if event.check == "ranks"]


def last_step(store: Store, config: StudyConfig) -> int:
    return max((point.step for point in read_points(config, store, config.run(VARIANT))), default=0)


@pytest.mark.parametrize(
    ("odd", "differing"),
    [
        ("fit.checkpoint_every=5", {"fit.checkpoint_every": (7, 5)}),
        ("fit.micro_batch=3", {"fit.micro_batch": (None, 3)}),
        ("fit.prefetch=1", {}),
    ],
)
def test_ranks_share_the_keys_that_decide_collectives(odd: str, differing: dict[str, tuple[object, object]]) -> None:
    configs = study("any"), load(ROOT / "configs" / "digits.yaml", [*OVERRIDES, "study=any", odd])
    ours, theirs = (study_facts(config, config.run(VARIANT), "content") for config in configs)
    assert {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]} == differing


@pytest.mark.slow
def test_rank_that_differs_is_named_before_the_first_step_of_a_resume(store: Store, port: int) -> None:
    config, trained = study("odd"), 4
    shorter = config.model_copy(update={"train": config.train.model_copy(update={"steps": trained})})
    train.run(shorter, store, VARIANT)
    names = "rank 1 has train.learning_rate=0.01, rank 0 has 0.0025"
    for process in start_ranks(store, "odd", port, *SHORT, odd=("train.learning_rate=0.01",), DIT_REVISION="abc"):
        errors = finish(process, FinalError.exit_code)
        assert names in errors
        assert "rank 1 has code version=0.1.0+abc, rank 0 has" in errors
    assert last_step(store, config) == trained
    assert list_checkpoints(store, config, config.run(VARIANT)) == [trained]
    [event] = events(store, config)
    assert (event.action, event.step) == ("stop", trained)
    assert names in event.message


@pytest.mark.slow
def test_dataset_of_another_content_is_named(store: Store, port: int, tmp_path: Path) -> None:
    other = open_store(tmp_path / "other")
    config = study("odd-dataset")
    key = f"{layout.dataset(config)}/{layout.MANIFEST}"
    manifest = json.loads(store.read(key))
    manifest["shards"][0]["sha256"] = "0" * 64
    other.write(key, json.dumps(manifest).encode())
    for process in start_ranks(store, "odd-dataset", port, *SHORT, odd_store=other):
        assert "rank 1 has dataset content=" in finish(process, FinalError.exit_code)
    assert last_step(store, config) == 0


@pytest.mark.slow
def test_replica_that_drifts_stops_the_training_before_the_next_checkpoint(
    store: Store, port: int, tmp_path: Path
) -> None:
    config = study("drift")
    for process in start_ranks(store, "drift", port, *SHORT, PYTHONPATH=patched(tmp_path, DRIFT)):
        assert "step 14: rank 1 has other values in ema.safetensors" in finish(process, FinalError.exit_code)
    assert list_checkpoints(store, config, config.run(VARIANT)) == [4, 7]
    assert [(event.step, event.action) for event in events(store, config)] == [
        (7, "ok"),
        (14, "stop"),
    ]
