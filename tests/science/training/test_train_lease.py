"""Two trainings of the same variant in one store: the second is refused, and continues once the first is gone."""

from __future__ import annotations

import signal
import time

import pytest
from training_processes import VARIANT, finish, start, study

from dit.checkpoints.read import list_checkpoints
from dit.errors import FinalError
from dit.stages import prepare
from dit.storage import open_store
from dit.storage.lease import read_lease
from dit.study import layout

ENDLESS = ("train.steps=1000000", "fit.log_every=100", "fit.checkpoint_every=100000")


@pytest.mark.slow
def test_second_training_is_refused_with_the_holder_and_goes_on_after_its_death(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store, config = open_store(tmp_path_factory.mktemp("lease")), study("twice")
    prepare.run(config, store)
    run = config.run(VARIANT)
    first = start(store, "twice", *ENDLESS)
    try:
        deadline = time.monotonic() + 250
        while 4 not in list_checkpoints(store, config, run):
            assert first.poll() is None
            assert time.monotonic() < deadline, "the first training never gets to its first checkpoint"
            time.sleep(0.05)
        held = read_lease(store, layout.lease(config, run))
        assert held is not None
        assert held.process == first.pid
        message = finish(start(store, "twice", *ENDLESS), FinalError.exit_code)
        assert (
            f"the training of {VARIANT} is under way: process {first.pid} on {held.host}, since {held.since}" in message
        )
        assert read_lease(store, layout.lease(config, run)) is not None
    finally:
        first.kill()
    finish(first, -signal.SIGKILL)
    finish(start(store, "twice", "train.steps=10", "fit.checkpoint_every=100000"))
    assert list_checkpoints(store, config, run) == [4, 10]
    assert read_lease(store, layout.lease(config, run)) is None
