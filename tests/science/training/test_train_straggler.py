"""A rank that computes slower than the others is named while the training goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from training_processes import DEADLINE, VARIANT, finish, patched, start_ranks, study

from dit.health.log import read_events
from dit.results.progress import pace_line, rank_progress
from dit.results.stages import Work
from dit.stages import prepare
from dit.storage import open_store
from dit.study import layout
from dit.study.records import HealthEvent
from dit.tracking import read_points

STEPS = 20
# A rank is as many times slower on any machine.
SLOW_DEVICE = f"""
import os, time
from dit.health import stragglers
stragglers.STEPS = {STEPS}
from dit.model import transformer
from dit.training import heartbeat
heartbeat.SECONDS = 0.5
forward = transformer.DiT.forward
def slow(self, *inputs):
    began = time.monotonic()
    output = forward(self, *inputs)
    if os.environ.get("RANK") == "1":
        time.sleep(0.2 + 4 * (time.monotonic() - began))
    return output
transformer.DiT.forward = slow
"""


@pytest.mark.slow
def test_slow_rank_is_named_in_health_progress_and_metrics(
    tmp_path_factory: pytest.TempPathFactory, port: int, tmp_path: Path
) -> None:
    store, config = open_store(tmp_path_factory.mktemp("straggler")), study("slow")
    prepare.run(config, store)
    run, work = config.run(VARIANT), Work(config, store)
    settings = ("train.steps=100000", "fit.log_every=5", "fit.checkpoint_every=100000")
    ranks = start_ranks(store, "slow", port, *settings, environment={"PYTHONPATH": patched(tmp_path, SLOW_DEVICE)})

    def until(what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert all(process.poll() is None for process in ranks)
            assert time.monotonic() < deadline, what
            time.sleep(0.2)

    def warnings() -> list[HealthEvent]:
        events = read_events(work.store, layout.health(config, run))
        return [event for event in events if (event.check, event.action) == ("progress", "warn")]

    try:
        until("the slow rank is never named", lambda: bool(warnings()))
        until(
            "its pace is never shown", lambda: "the others wait for rank 1 on " in pace_line(rank_progress(work, run))
        )
        first, second = rank_progress(work, run)
    finally:
        for process in ranks:
            process.terminate()
    for process in ranks:
        finish(process, 128 + signal.SIGTERM)
    event = warnings()[0]
    assert "rank 1 on " in event.message
    assert event.step >= STEPS
    assert (first.rank, second.rank, first.world_size) == (0, 1, 2)
    assert first.step > 0
    points = {(point.key, point.step): point.value for point in read_points(config, store, run)}
    assert points["rank_seconds/1", event.step] > 2 * points["rank_seconds/0", event.step]
