"""A rank that is frozen or hangs is named, all ranks end, and the same command resumes from the last checkpoint."""

from __future__ import annotations

import signal
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from ports import reserved_port
from training_processes import (
    DEADLINE,
    STEPS,
    VARIANT,
    Losses,
    finish,
    losses,
    random_step,
    signalled,
    start_ranks,
    study,
)

from dit.checkpoints.read import list_checkpoints
from dit.errors import PeerError
from dit.health.log import last_events, read_events
from dit.results.progress import rank_progress
from dit.results.stages import Work
from dit.stages import prepare, train
from dit.storage import Store, open_store
from dit.study import layout

# Long against the steps of a machine that others share, because only a rank that is stopped must be named.
COLLECTIVE_SECONDS = 30
IMPATIENT = """
import time
from dit.health import stall
from dit.training import heartbeat
heartbeat.SECONDS, heartbeat.GRACE_SECONDS = 0.5, 15.0
stall.STEPS, stall.NAMED_SECONDS, stall.SILENT_SECONDS, stall.LONG_SECONDS = 2, 12.0, 6.0, 300.0
step = trainer.Trainer.step
def hanging(self, batch):
    step(self, batch)
    if os.environ.get("HANGS_AT") == str(self.steps_done):
        time.sleep(1000)
trainer.Trainer.step = hanging
"""
# Not a step after which a check adds up something over all ranks: the other rank then waits inside its step, too.
HANGS_AT = 23


@dataclass(frozen=True)
class Case:
    """A rank that does not get on."""

    study: str
    stalled: int
    message: str
    hangs: bool = False


CASES = {
    "frozen": Case("frozen-1", 1, "no sign of life"),
    "first rank frozen": Case("frozen-0", 0, "no sign of life"),
    "hangs": Case("hangs-1", 1, "does not get on", hangs=True),
}


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


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def ended(store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    """All cases run at the same time, because they do little but wait; their ranks have ended."""
    step = random_step()
    common = signalled(tmp_path_factory.mktemp("patch"), signal.SIGSTOP, step, IMPATIENT)
    common |= {"DIT_COLLECTIVE_TIMEOUT": str(COLLECTIVE_SECONDS)}
    with ExitStack() as stack:
        started: list[tuple[Case, list[subprocess.Popen[str]]]] = []
        for case in CASES.values():
            port = stack.enter_context(reserved_port())
            fates = [{"SIGNAL_AT": ""}, {"SIGNAL_AT": ""}]
            fates[case.stalled] = (
                {"SIGNAL_AT": "", "HANGS_AT": str(HANGS_AT)} if case.hangs else {"SIGNAL_AT": str(step)}
            )
            ranks = start_ranks(store, case.study, port, environment=common | fates[0], **fates[1])
            for process in ranks:
                stack.callback(end, process)
            started.append((case, ranks))
        for case, ranks in started:
            finish(ranks[1 - case.stalled], PeerError.exit_code)
            if case.hangs:
                printed, _ = ranks[case.stalled].communicate(timeout=DEADLINE)
                assert "has not got on since step" in printed
                assert ranks[case.stalled].returncode == PeerError.exit_code


@pytest.mark.slow
@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rank_that_does_not_get_on_is_named_and_the_training_resumes_with_the_same_losses(
    case: Case, store: Store, expected: Losses
) -> None:
    config = study(case.study)
    run = config.run(VARIANT)
    record = rank_progress(Work(config, store), run)[case.stalled]
    event = last_events(read_events(store, layout.health(config, run)))["progress"]
    assert (event.action, event.step) == ("warn", record.step)
    assert f"rank {case.stalled} on {record.host}: {case.message}" in event.message
    saved = list_checkpoints(store, config, run)
    assert 0 < saved[-1] < STEPS
    train.run(config, store, VARIANT)
    actual = losses(store, config, ("loss",))
    assert actual == {point: pytest.approx(value, rel=1e-5) for point, value in expected.items()}
