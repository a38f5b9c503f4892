"""The shipper, end to end: what MLflow's client reads of new, killed, resumed and deleted runs."""

from __future__ import annotations

import signal
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tracked_study import (
    PATIENCE_SECONDS,
    SHOWN,
    STUDY,
    VARIANTS,
    Tracked,
    arrived,
    database,
    end_shippers,
    losses,
    picture,
    stand,
    train,
    until,
)

from dit.errors import DataError, StoppedError
from dit.storage import Store, open_store, read_record
from dit.study import layout, study_file
from dit.study.config import StudyConfig
from dit.tracking import flush, open_tracker, read_points
from dit.tracking.journal import read_header
from dit.tracking.journal_upload import JournalUpload
from dit.tracking.mlflow_client import MlflowRuns, RunGoneError
from dit.tracking.paths import run_folder
from dit.tracking.state import ShipState, TrackingRun
from dit.tracking.target import resolve_target

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


# Pillow would start Ghostscript for the first, and raises DecompressionBombError for the second.
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
_HEADER = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
HUGE = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + _HEADER + struct.pack(">I", zlib.crc32(_HEADER)) + bytes(20)


@dataclass(frozen=True)
class Shared:
    """A study that most tests share, each with its own variant, so that its shipper starts once."""

    config: StudyConfig
    store: Store


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    config, store = study_file.load(STUDY, [VARIANTS]), open_store(folder)
    _runs_of_other_machines(database(store), config.study)
    with open_tracker(config, store, config.run(SHOWN)) as tracker:
        tracker.metrics(20, {"loss": 0.5})
    until(lambda: arrived(config, store), "the first run has arrived")
    yield Shared(config, store)
    end_shippers(folder)


def _settled(config: StudyConfig, store: Store, **statuses: str) -> Tracked:
    """The client's view once everything has arrived and the named runs have these statuses."""
    until(lambda: arrived(config, store), "all has arrived")
    until(lambda: stand(store, **statuses), f"runs stand at {statuses}")
    return Tracked(database(store))


def _runs_of_other_machines(address: str, study: str) -> None:
    """A run whose last heartbeat is an hour old, and a live run whose clock is an hour ahead."""
    client: Any = MlflowClient(tracking_uri=address)
    folder = address.replace("sqlite:///", "file://").replace("mlflow.db", "artifacts")
    experiment = client.create_experiment(study, folder)
    now = int(time.time() * 1000)
    for name, heartbeat in {"silent": now - 3_600_000, "heard": now + 3_600_000}.items():
        tags = {"dit.study": study, "dit.heartbeat": str(heartbeat)}
        client.create_run(experiment, start_time=now - 7_200_000, run_name=name, tags=tags)


@pytest.mark.slow
def test_a_study_has_one_run_per_variant_below_one_parent_run(shared: Shared) -> None:
    config, store = shared.config, shared.store
    first, second = config.run("mini-B/2"), config.run("mini-L/2")
    for study_run in (first, second):
        with open_tracker(config, store, study_run) as tracker:
            tracker.params({"depth": study_run.spec.depth, "patch": study_run.spec.patch})
            tracker.metrics(0, {"gflops": 0.5, "fid@50k:cfg=1.5": 2.0})
            tracker.metrics(10, {"loss": 0.1})
    with open_tracker(config, store, first) as tracker:
        tracker.params({"depth": first.spec.depth, "patch": 99})
        tracker.image("samples", 200, picture(0))
        tracker.image("samples", 400, picture(255))
        tracker.image("broken", 400, b"not a PNG")
        tracker.image("foreign", 400, POSTSCRIPT)
        tracker.image("huge", 400, HUGE)
        tracker.artifact("health/health.jsonl", b"fine\n")
    with pytest.raises(DataError), open_tracker(config, store, second):
        raise DataError("part 3 is damaged")
    with open_tracker(config, store, None) as tracker:
        tracker.artifact("report.html", b"<html>")
    tracked = _settled(config, store, **{"digits": "FINISHED", first.name: "FINISHED", second.name: "FAILED"})
    assert tracked.run(second.name).data.tags["error"] == "part 3 is damaged"
    parent = tracked.run("digits")
    for study_run in (first, second):
        run = tracked.run(study_run.name)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params == {"depth": str(study_run.spec.depth), "patch": str(study_run.spec.patch)}
        assert run.data.metrics == {"gflops": 0.5, "fid_50k:cfg_1.5": 2.0, "loss": 0.1}
    assert tracked.run(first.name).data.tags["param_changed/patch"] == "99"
    assert tracked.files("digits") == ["report.html"]
    images = [path for path in tracked.files(first.name) if path.endswith(".png")]
    assert sorted(path.split("+")[2] for path in images) == ["200", "400"]
    assert "health/health.jsonl" in tracked.files(first.name)
    record = read_record(store, layout.tracking_run(config, first), TrackingRun)
    assert record is not None
    assert record.run_id == tracked.run(first.name).info.run_id


def test_a_training_stopped_by_a_signal_ends_killed_not_failed(shared: Shared) -> None:
    config, store, study_run = shared.config, shared.store, shared.config.run("mini-XL/2")
    with pytest.raises(StoppedError), open_tracker(config, store, study_run):
        raise StoppedError("stopped by a signal at step 10", signal.SIGTERM)
    tracked = _settled(config, store, **{"digits": "KILLED", study_run.name: "KILLED"})
    assert "error" not in tracked.run(study_run.name).data.tags


def test_a_run_without_heartbeats_ends_killed(shared: Shared) -> None:
    until(lambda: stand(shared.store, silent="KILLED"), "the silent run is ended")
    assert Tracked(database(shared.store)).statuses["heard"] == "RUNNING"


def test_a_killed_training_ends_killed_and_its_resumption_continues_the_run(shared: Shared) -> None:
    config, store, study_run = shared.config, shared.store, shared.config.run("mini-S/4")
    training = train(store, study_run, 10, 100, then=300, wait=False)
    until(lambda: stand(store, **{"digits": "RUNNING", study_run.name: "RUNNING"}), "the runs are there")
    training.kill()
    before = _settled(config, store, **{"digits": "KILLED", study_run.name: "KILLED"})
    assert before.history(study_run.name, "loss") == losses(*range(10, 110, 10))
    training.communicate()
    train(store, study_run, 60, 150)
    after = _settled(config, store, **{"digits": "FINISHED", study_run.name: "FINISHED"})
    assert after.run(study_run.name).info.run_id == before.run(study_run.name).info.run_id
    assert after.history(study_run.name, "loss") == losses(*range(10, 160, 10))
    assert len(after.history(study_run.name, "images_per_second")) == 15


def test_a_run_deleted_on_the_server_is_restored_with_all_points(shared: Shared) -> None:
    config, store, study_run = shared.config, shared.store, shared.config.run("mini-B/4")
    client: Any = MlflowClient(tracking_uri=database(store))
    with open_tracker(config, store, study_run) as tracker:
        tracker.metrics(10, {"loss": 1 / 10})
        until(lambda: tracker.run_id, "the run is there")
        first = tracker.run_id
        client.delete_run(first)
        tracker.metrics(20, {"loss": 1 / 20})
        until(lambda: tracker.run_id not in (None, first), "another run is there")
        second = tracker.run_id
        client.delete_run(second)
    tracked = _settled(config, store, **{study_run.name: "FINISHED"})
    assert tracked.run(study_run.name).info.run_id not in (first, second)
    assert tracked.history(study_run.name, "loss") == losses(10, 20)


def test_points_that_only_the_server_has_return_to_the_journal_once(shared: Shared, root: Path) -> None:
    config, store, study_run = shared.config, shared.store, shared.config.run("mini-L/4")
    train(store, study_run, 10, 50)
    copy = run_folder(config, store, study_run).journal.read_bytes()
    train(store, study_run, 60, 90)
    before = _settled(config, store, **{study_run.name: "FINISHED"}).run(study_run.name).info.run_id
    # Another machine, with an older copy of the journal and no shipping state.
    config, store = study_file.load(STUDY, [VARIANTS, f"tracking.uri={database(store)}"]), open_store(root)
    journal = run_folder(config, store, study_run).journal
    journal.parent.mkdir(parents=True)
    journal.write_bytes(copy)
    with open_tracker(config, store, study_run) as tracker:
        steps = [point.step for point in read_points(config, store, study_run) if point.key == "loss"]
        assert steps == list(range(10, 60, 10))
        until(lambda: tracker.run_id, "the server has been reached")
        until(lambda: len(read_points(config, store, study_run)) == 2 * 9, "the points are back")
        for step in range(60, 120, 10):
            tracker.metrics(step, {"loss": 1 / step})
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    tracked = Tracked(database(shared.store))
    assert tracked.run(study_run.name).info.run_id == before
    assert tracked.history(study_run.name, "loss") == losses(*range(10, 120, 10))


def test_a_run_deleted_after_a_comparison_is_restored_with_all_points(shared: Shared, root: Path) -> None:
    overrides = [VARIANTS, f"tracking.uri={database(shared.store)}", "tracking.experiment=compared"]
    config, store = study_file.load(STUDY, overrides), open_store(root)
    unshipped, study_run = study_file.load(STUDY, [*overrides, "tracking.kind=none"]), config.runs[0]
    run, target = run_folder(config, store, study_run), resolve_target(config, store)
    with open_tracker(unshipped, store, study_run) as tracker:
        tracker.metrics(10, {"loss": 1 / 10})
    header, client, state = read_header(run.journal), MlflowRuns(target), ShipState(root / "state", target.digest)
    assert header is not None
    upload = JournalUpload(run, run.journal, header, target, store, state)
    upload.ship(client, None)
    # Without a state, the run is identified by its tags and compared.
    state.journals.clear()
    upload.ship(client, None)
    first = upload.run_id
    Tracked(target.uri, "compared").client.delete_run(first)
    with open_tracker(unshipped, store, study_run) as tracker:
        tracker.metrics(20, {"loss": 1 / 20})
    with pytest.raises(RunGoneError):
        upload.ship(client, None)
    state.journals.clear()
    upload.ship(client, None)
    assert upload.run_id not in (None, first)
    assert Tracked(target.uri, "compared").history(study_run.name, "loss") == losses(10, 20)


def test_a_finished_run_stays_finished_while_a_changed_recipe_runs(root: Path) -> None:
    before = study_file.load(STUDY, [VARIANTS, "tracking.kind=none"])
    config, store = study_file.load(STUDY, [VARIANTS, "train.learning_rate=1e-4"]), open_store(root)
    study_run = config.runs[0]
    with open_tracker(before, store, study_run) as tracker:
        tracker.metrics(10, {"loss": 1 / 10})
    with open_tracker(config, store, study_run) as tracker:
        # Once the second point has arrived, the round of the first is over.
        for step in (20, 30):
            tracker.metrics(step, {"loss": 1 / step})
            until(lambda: arrived(config, store), "all has arrived")
        runs = [run for run in Tracked(database(store)).runs if run.info.run_name == study_run.name]
        assert sorted(run.info.status for run in runs) == ["FINISHED", "RUNNING"]
