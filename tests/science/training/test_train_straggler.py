"""A rank that computes slower than the others is named while the training goes on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from training_processes import VARIANT, finish, patched, start_ranks, study

from dit.health.log import read_events
from dit.results.progress import pace_line, rank_progress
from dit.results.stages import Work
from dit.stages import prepare
from dit.storage import open_store
from dit.study import layout
from dit.tracking import read_points

SLOW_DEVICE = """
import os, time
from dit.model import transformer
from dit.training import heartbeat
heartbeat.SECONDS = 0.5
forward = transformer.DiT.forward
def slow(self, *inputs):
    if os.environ.get("RANK") == "1":
        time.sleep(0.15)
    return forward(self, *inputs)
transformer.DiT.forward = slow
"""


@pytest.mark.slow
def test_slow_rank_is_named_in_health_progress_and_metrics(
    tmp_path_factory: pytest.TempPathFactory, port: int, tmp_path: Path
) -> None:
    store, config = open_store(tmp_path_factory.mktemp("straggler")), study("slow")
    prepare.run(config, store)
    run, work = config.run(VARIANT), Work(config, store)
    settings = ("train.steps=100000", "fit.log_every=25", "fit.checkpoint_every=100000")
    ranks = start_ranks(store, "slow", port, *settings, environment={"PYTHONPATH": patched(tmp_path, SLOW_DEVICE)})
    try:
        deadline = time.monotonic() + 250
        while not (
            warned := [
                event
                for event in read_events(work.store, layout.health(config, run))
                if (event.check, event.action) == ("progress", "warn")
            ]
        ):
            assert all(process.poll() is None for process in ranks)
            assert time.monotonic() < deadline, "the slow rank is never named"
            time.sleep(0.2)
        first, second = rank_progress(work, run)
    finally:
        for process in ranks:
            process.terminate()
    for process in ranks:
        finish(process, 128 + signal.SIGTERM)
    [event] = warned
    assert "rank 1 on " in event.message
    assert 100 <= event.step < 150
    assert (first.rank, second.rank, first.world_size) == (0, 1, 2)
    assert first.step > 0
    assert first.own_seconds is not None
    assert second.own_seconds is not None
    assert second.own_seconds > 2 * first.own_seconds
    assert f"the others wait for rank 1 on {second.host}" in pace_line([first, second])
    points = {(point.key, point.step): point.value for point in read_points(config, store, run)}
    assert points["rank_seconds/1", 100] > 2 * points["rank_seconds/0", 100]
