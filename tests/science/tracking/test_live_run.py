"""A tag on a run whose own processes cannot log."""

from __future__ import annotations

from pathlib import Path

import pytest
from tracked_study import SHOWN, STUDY, Tracked, arrived, database, until

from dit.storage import open_store
from dit.study import study_file
from dit.tracking import live_run, open_tracker
from dit.tracking.live_run import tag_live_run


def test_a_run_is_tagged_while_its_journal_belongs_to_another_process(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, store = study_file.load(STUDY, [f"variants=[{SHOWN}]"]), open_store(root)
    run, message = config.run(SHOWN), "rank 1 on pod-1: no sign of life"
    tag_live_run(config, store, run, {"health/progress": "there is no run yet"})
    with open_tracker(config, store, run) as tracker:
        tracker.metrics(20, {"loss": 0.5})
        until(lambda: arrived(config, store), "the run has arrived")
        tag_live_run(config, store, run, {"health/progress": message})
    assert Tracked(database(store)).run(SHOWN).data.tags["health/progress"] == message
    # A server that does not answer is reported, not raised.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(live_run, "SECONDS", 0.1)
    tag_live_run(config, store, run, {"health/progress": message})
    assert "the run of mini-S/2 was not tagged: no answer" in capsys.readouterr().out
