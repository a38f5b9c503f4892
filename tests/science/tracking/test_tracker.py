"""The tracker that stages log to: its journal, and what waits to be shipped."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dit.errors import ConfigError, DataError, InputError, StoppedError
from dit.storage.file import FileStore
from dit.study import layout, study_file
from dit.study.config import StudyConfig
from dit.study.runs import Run
from dit.tracking import flush, open_tracker, read_points, reconcile
from dit.tracking.journal import read_entries, read_header
from dit.tracking.paths import local_root, run_folder, study_folder
from dit.tracking.state import Shipped, read_state, waiting
from dit.tracking.target import resolve_target

ROOT = Path(__file__).parents[3]


def study(*overrides: str) -> StudyConfig:
    return study_file.load(ROOT / "configs" / "digits.yaml", ["tracking.kind=none", *overrides])


@pytest.fixture
def config() -> StudyConfig:
    return study()


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "root")


def statuses(store: FileStore, config: StudyConfig, study_run: Run) -> list[tuple[str, str | None]]:
    path = store.root / layout.journal(config, study_run)
    found = [entry.values for entry, _ in read_entries(path) if entry.kind == "status"]
    return [(values["status"], values.get("error")) for values in found]


def test_a_resumed_run_logs_no_point_twice(config: StudyConfig, store: FileStore) -> None:
    study_run = config.runs[0]
    for start in (0, 40, 20):  # as after kills, from checkpoints
        with open_tracker(config, store, study_run) as tracker:
            for step in range(start + 10, start + 60, 10):
                tracker.metrics(step, {"loss": 1 / step, "rate": 100.0 + start})
    points = read_points(config, store, study_run)
    losses = [(point.step, point.value) for point in points if point.key == "loss"]
    assert losses == [(step, 1 / step) for step in range(10, 100, 10)]
    assert len(points) == 2 * len(losses)


def test_steps_may_come_in_any_order(config: StudyConfig, store: FileStore) -> None:
    study_run = config.runs[0]
    for step in (800, 200, 400, 200):
        with open_tracker(config, store, study_run) as tracker:
            tracker.metrics(step, {"fd_digits": float(step)})
            tracker.metrics(step, {"precision": math.nan})
    assert [point.step for point in read_points(config, store, study_run) if point.key == "fd_digits"] == [
        800,
        200,
        400,
    ]


def test_runs_of_variants_and_of_the_study_have_journals_of_their_own(config: StudyConfig, store: FileStore) -> None:
    first, second, *_ = config.runs
    for number, study_run in enumerate((first, second, None)):
        with open_tracker(config, store, study_run) as tracker:
            tracker.metrics(1, {"loss": float(number)})
    assert [[p.value for p in read_points(config, store, study_run)] for study_run in (first, second, None)] == [
        [0],
        [1],
        [2],
    ]
    assert read_points(config, store, config.runs[2]) == []


def test_all_ranks_but_the_first_log_nothing(config: StudyConfig, store: FileStore) -> None:
    with open_tracker(config, store, config.runs[0], enabled=False) as tracker:
        tracker.params({"depth": 2})
        tracker.metrics(1, {"loss": 1.0})
        tracker.tags({"a": "b"})
        tracker.artifact("a", b"a")
        tracker.image("a", 1, b"a")
        tracker.sync()
        assert tracker.run_id is None
    assert store.list() == []


def test_the_status_of_a_run_is_in_its_journal(config: StudyConfig, store: FileStore) -> None:
    study_run = config.runs[0]
    with open_tracker(config, store, study_run):
        pass
    stopped = (StoppedError("stopped by a signal", 15), KeyboardInterrupt(), SystemExit(143))
    for problem in (DataError("shard 3 is\ndamaged"), ZeroDivisionError("x"), *stopped):
        with pytest.raises(type(problem)), open_tracker(config, store, study_run):
            raise problem
    ends = [status for status in statuses(store, config, study_run) if status[0] != "RUNNING"]
    assert ends == [
        ("FINISHED", None),
        ("FAILED", "shard 3 is damaged"),
        ("FAILED", "ZeroDivisionError: x"),
        *[("KILLED", None)] * len(stopped),
    ]


def test_a_killed_writer_is_marked_killed_once(config: StudyConfig, store: FileStore) -> None:
    study_run = config.runs[0]
    code = (
        "import os, sys; from dit.study import study_file; from dit.storage import open_store\n"
        "from dit.tracking import open_tracker\n"
        "config = study_file.load(sys.argv[1], ['tracking.kind=none'])\n"
        "with open_tracker(config, open_store(sys.argv[2]), config.runs[0]) as tracker:\n"
        "    tracker.metrics(1, {'loss': 1.0})\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(ROOT / "configs/digits.yaml"), str(store.root)], check=False)
    assert run.returncode == -9
    assert [point.step for point in read_points(config, store, study_run)] == [1]
    reconcile(config, store)
    reconcile(config, store)
    assert [status for status, _ in statuses(store, config, study_run)] == ["RUNNING", "KILLED"]


def test_unchanged_parameters_and_files_are_logged_once(config: StudyConfig, store: FileStore) -> None:
    study_run = config.runs[0]
    for depth in (2, 2, 3):
        with open_tracker(config, store, study_run) as tracker:
            tracker.params({"depth": depth, "patch": 2})
            tracker.artifact("health.jsonl", b"fine")
            tracker.image("grid", 100, b"png")
    journal = [entry for entry, _ in read_entries(store.root / layout.journal(config, study_run))]
    assert [entry.values for entry in journal if entry.kind == "params"] == [
        {"depth": "2", "patch": "2"},
        {"depth": "3"},
    ]
    assert len([entry for entry in journal if entry.kind in ("artifact", "image")]) == 2


def test_a_changed_recipe_starts_a_new_journal(config: StudyConfig, store: FileStore) -> None:
    study_run = config.runs[0]
    with open_tracker(config, store, study_run) as tracker:
        tracker.metrics(10, {"loss": 1.0})
    changed = study("train.learning_rate=1e-4")
    with open_tracker(changed, store, study_run) as tracker:
        tracker.metrics(10, {"loss": 2.0})
    assert [point.value for point in read_points(changed, store, study_run)] == [2.0]
    longer = study("train.learning_rate=1e-4", "train.steps=2000")
    with open_tracker(longer, store, study_run) as tracker:
        tracker.metrics(10, {"loss": 3.0})
    assert [point.value for point in read_points(longer, store, study_run)] == [2.0]


def test_the_journal_has_one_json_object_per_line(config: StudyConfig, store: FileStore) -> None:
    with open_tracker(config, store, config.runs[0]) as tracker:
        tracker.metrics(10, {"loss": 1.0})
    lines = (store.root / layout.journal(config, config.runs[0])).read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["run", "status", "metrics", "status"]


def test_without_mlflow_nothing_is_shipped(config: StudyConfig, store: FileStore) -> None:
    with open_tracker(config, store, None) as tracker:
        tracker.metrics(1, {"loss": 1.0})
    assert flush(config, store)
    assert not list(store.root.rglob("shipper*"))


def test_the_default_target_of_runs(store: FileStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    local = resolve_target(study(), store)
    assert local.uri == f"sqlite:///{store.root}/mlflow.db"
    assert local.artifacts == (store.root / "mlartifacts" / "digits").as_uri()
    assert local.experiment == "digits"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@mlflow:5000")
    remote = resolve_target(study("tracking.experiment=other"), store)
    assert (remote.uri, remote.artifacts, remote.experiment) == ("http://user:secret@mlflow:5000", None, "other")
    assert remote.address == "http://mlflow:5000"
    assert replace(remote, uri="mysql+x://host/db?passwd=secret&a=b").address == "mysql+x://host/db?passwd=&a=b"
    monkeypatch.chdir(tmp_path)
    assert resolve_target(study("tracking.uri=sqlite:///x.db"), store).uri == f"sqlite:///{tmp_path}/x.db"


def test_a_password_does_not_change_the_target_and_is_not_stored(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@mlflow:5000")
    target = resolve_target(study(), store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:changed@mlflow:5000")
    changed = resolve_target(study(), store)
    with open_tracker(study(), store, None) as tracker:
        tracker.metrics(1, {"loss": 1.0})
    folder, run = study_folder(study(), store), run_folder(study(), store, None)
    state = read_state(folder, target)
    header = read_header(run.journal)
    assert header is not None
    state.journals[header.values["id"]] = Shipped("1", run.journal.stat().st_size, status="FINISHED")
    state.save()
    other = resolve_target(study("tracking.uri=http://elsewhere:5000"), store)
    assert [waiting(folder, each) > 0 for each in (target, changed, other)] == [False, False, True]
    assert not any(b"secret" in path.read_bytes() for path in store.root.rglob("*") if path.is_file())


ADDRESSES = {
    "runs/mlruns": "sqlite:///path",
    "file:///tmp/mlruns": "sqlite:///path",
    "mlflow": "sqlite:///path",
    "localhost:5000": "give http://localhost:5000",
    "127.0.0.1:5000/x": "give http://127.0.0.1:5000/x",
    "htpp://mlflow:5000": "unknown scheme 'htpp'",
    "sqlite://mlflow.db": "give sqlite:///mlflow.db",
    "sqlite:///:memory:": "names no file",
    "http://": "names no host",
    "http://mlflow:99999": "is no address (Port out of range 0-65535); give http://host:port",
    "http://[mlflow": "is no address (Invalid IPv6 URL); give http://host:port",
    "http://mlflow/?page=planted": "has a '?' after its host, as a password may have; give http://host:port/path",
}


@pytest.mark.parametrize("uri", ADDRESSES)
def test_an_address_with_which_mlflow_cannot_work_is_refused_with_one_that_can(
    uri: str, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=re.escape(ADDRESSES[uri])):
        study("tracking.kind=mlflow", f"tracking.uri='{uri}'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with (
        pytest.raises(InputError, match=re.escape(ADDRESSES[uri])),
        open_tracker(study("tracking.kind=mlflow"), store, None),
    ):
        pytest.fail("must not begin")
    assert store.list() == []


def test_the_driver_of_a_database_server_is_checked_before_any_work(store: FileStore) -> None:
    with pytest.raises(InputError, match="driver no_such_driver is not installed"):
        resolve_target(study("tracking.uri=mysql+no_such_driver://host/db"), store)


def test_the_scheme_may_be_written_in_capitals(store: FileStore) -> None:
    assert resolve_target(study("tracking.uri=HTTP://mlflow:5000"), store).uri == "http://mlflow:5000"


def test_journals_follow_the_layout(config: StudyConfig, store: FileStore) -> None:
    study_run = config.runs[0]
    with open_tracker(config, store, study_run):
        pass
    assert (local_root(store) / layout.journal(config, study_run)).is_file()
    assert [run.path.name for run in study_folder(config, store).runs()] == ["digits", study_run.slug]
