"""Losses at any number of ranks and micro-batch, and after a kill or a stop, equal those of one undisturbed process."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from training_processes import (
    SEED,
    STEPS,
    VARIANT,
    Losses,
    checkpoint_meta,
    finish,
    losses,
    random_step,
    signalled,
    start,
    start_ranks,
    study,
)

from dit.checkpoints.read import list_checkpoints
from dit.stages import prepare, train
from dit.storage import Store, open_store, read_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import TrainRecord

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--local-addr", "127.0.0.1")
KEYS = ("loss", "loss_mse", "loss_vb", "grad_norm")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    opened = open_store(tmp_path_factory.mktemp("ranks"))
    prepare.run(study("any"), opened)
    return opened


@pytest.fixture(scope="module")
def expected(store: Store) -> Losses:
    config = study("straight")
    train.run(config, store, VARIANT)
    return losses(store, config, KEYS)


def same(actual: Losses, expected: Losses) -> None:
    assert actual.keys() == expected.keys()
    for point, value in expected.items():
        # The norm sums squares of all gradients, and their rounding differences; the contract is about losses.
        tolerance = 1e-4 if point[0] == "grad_norm" else 1e-5
        assert actual[point] == pytest.approx(value, rel=tolerance), f"{point}; DIT_TEST_SEED={SEED}"


def statuses(store: Store, config: StudyConfig) -> list[str]:
    """Return all statuses of the run, over all launches."""
    lines = map(json.loads, store.read(layout.journal(config, config.run(VARIANT))).splitlines())
    return [line["values"]["status"] for line in lines if line["kind"] == "status"]


@pytest.mark.slow
def test_two_ranks_and_uneven_accumulation_give_the_losses_of_one(store: Store, expected: Losses) -> None:
    config = study("two-ranks")
    finish(start(store, config.study, "fit.micro_batch=4", launcher=TORCHRUN))
    same(losses(store, config, KEYS), expected)
    record = read_record(store, layout.train_record(config, config.run(VARIANT)), TrainRecord)
    assert record is not None
    assert record.world_size == 2


@pytest.mark.slow
def test_killed_run_goes_on_at_another_world_size(store: Store, expected: Losses, port: int, tmp_path: Path) -> None:
    config = study("killed")
    run = config.run(VARIANT)
    finish(start(store, config.study, **signalled(tmp_path, signal.SIGKILL, random_step())), -signal.SIGKILL)
    reached = max(step for _, step in losses(store, config, KEYS))
    assert reached < STEPS
    for rank in start_ranks(store, config.study, port):
        finish(rank)
    same(losses(store, config, KEYS), expected)
    # The early checkpoint is that of the first launch, so the second did not start at step 0.
    made_by = {
        step: checkpoint_meta(config, store, run, step).world_size for step in list_checkpoints(store, config, run)
    }
    assert (made_by[4], made_by[STEPS]) == (1, 2)


@pytest.mark.slow
def test_signal_to_one_rank_stops_all_at_the_same_step_with_a_checkpoint(
    store: Store, expected: Losses, port: int, tmp_path: Path
) -> None:
    config = study("stopped")
    run = config.run(VARIANT)
    second = signalled(tmp_path, signal.SIGTERM, random_step())
    ranks = start_ranks(store, config.study, port, "fit.micro_batch=5", **second)
    messages = [finish(process, 128 + signal.SIGTERM) for process in ranks]
    stopped_at = max(step for _, step in losses(store, config, KEYS))
    assert stopped_at < STEPS
    assert all(f"stopped by a signal at step {stopped_at}, whose checkpoint is written" in text for text in messages)
    assert list_checkpoints(store, config, run)[-1] == stopped_at
    assert statuses(store, config) == ["RUNNING", "KILLED"]
    finish(start(store, config.study, "fit.micro_batch=7"))
    same(losses(store, config, KEYS), expected)
    assert statuses(store, config)[2:] == ["RUNNING", "FINISHED"]
    assert checkpoint_meta(config, store, run, 4).world_size == 2
