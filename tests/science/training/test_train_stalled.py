"""A rank that is frozen or hangs is named, all ranks end, and the same command resumes from the last checkpoint."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from training_processes import STEPS, VARIANT, Losses, at_random_step, finish, losses, patched, start_ranks, study

from dit.checkpoints.read import list_checkpoints
from dit.errors import PeerError
from dit.health.log import last_events, read_events
from dit.results.progress import rank_progress
from dit.results.stages import Work
from dit.stages import prepare, train
from dit.storage import Store, open_store
from dit.study import layout

IMPATIENT = """
import os, time
from dit.health import stall
from dit.training import heartbeat, trainer
heartbeat.SECONDS, heartbeat.GRACE_SECONDS = 0.3, 5.0
stall.STEPS, stall.NAMED_SECONDS, stall.SILENT_SECONDS, stall.LONG_SECONDS = 2, 4.0, 2.0, 60.0
step = trainer.Trainer.step
def hanging(self, batch):
    step(self, batch)
    if os.environ.get("HANGS_AT") == str(self.steps_done):
        time.sleep(1000)
trainer.Trainer.step = hanging
"""
# Not a step after which a check adds up something over all ranks: the other rank then waits inside its step, too.
HANGS_AT = 23


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    opened = open_store(tmp_path_factory.mktemp("stalled"))
    prepare.run(study("any"), opened)
    return opened


@pytest.fixture(scope="module")
def expected(store: Store) -> Losses:
    config = study("undisturbed")
    train.run(config, store, VARIANT)
    return losses(store, config, ("loss",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stalled", "hangs", "what"),
    [(1, False, "no sign of life"), (0, False, "no sign of life"), (1, True, "does not get on")],
    ids=["frozen", "first rank frozen", "hangs"],
)
def test_rank_that_does_not_get_on_is_named_and_the_training_resumes_with_the_same_losses(
    stalled: int, hangs: bool, what: str, store: Store, expected: Losses, tmp_path: Path, port: int
) -> None:
    config = study(f"stalled-{stalled}-{hangs:d}")
    run = config.run(VARIANT)
    environment = {"PYTHONPATH": patched(tmp_path / "patch", IMPATIENT), "DIT_COLLECTIVE_TIMEOUT": "12"}
    hanging = {"HANGS_AT": str(HANGS_AT)} if hangs else {}
    ranks = start_ranks(store, config.study, port, environment=environment, **hanging)
    try:
        if not hangs:
            at_random_step(store, config, lambda: ranks[stalled].send_signal(signal.SIGSTOP))
        finish(ranks[1 - stalled], PeerError.exit_code)
        if hangs:
            assert "has not got on since step" in ranks[stalled].communicate(timeout=60)[0]
            assert ranks[stalled].returncode == PeerError.exit_code
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    record = rank_progress(Work(config, store), run)[stalled]
    event = last_events(read_events(store, layout.health(config, run)))["progress"]
    assert (event.action, event.step) == ("warn", record.step)
    assert f"rank {stalled} on {record.host}: {what}" in event.message
    saved = list_checkpoints(store, config, run)
    assert 0 < saved[-1] < STEPS
    train.run(config, store, VARIANT)
    actual = losses(store, config, ("loss",))
    assert actual == {point: pytest.approx(value, rel=1e-5) for point, value in expected.items()}
