"""Journals of a study in an S3 store, over HTTP: another machine continues them, with or without an MLflow server."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from s3_proxy import BUCKET, Proxy
from tracked_study import PATIENCE_SECONDS, STUDY, end_shippers

from dit.errors import DitError, StoreError
from dit.storage import Store, open_store, read_record
from dit.storage.s3 import S3Store
from dit.study import layout, study_file
from dit.study.config import StudyConfig
from dit.tracking import collect, end_failed, flush, open_tracker, read_points
from dit.tracking.journal import parse
from dit.tracking.paths import local_root, tracked_studies
from dit.tracking.state import TrackingRun
from dit.tracking.store_copy import fetch_journals

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture
def store(s3_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:  # noqa: ARG001
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "machine-1"))
    yield open_store(f"s3://{BUCKET}/results")
    end_shippers(tmp_path)


@pytest.fixture
def config() -> StudyConfig:
    return study_file.load(STUDY, ["tracking.kind=none"])


def _steps(config: StudyConfig, store: Store) -> list[int]:
    return [point.step for point in read_points(config, store, config.runs[0])]


def _log(config: StudyConfig, store: Store, *steps: int) -> None:
    with open_tracker(config, store, config.runs[0]) as tracker:
        for step in steps:
            tracker.metrics(step, {"loss": 1 / step})


def test_another_machine_continues_the_journal(
    config: StudyConfig, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _log(config, store, 10, 20)
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "machine-2"))
    assert _steps(config, store) == [10, 20]
    _log(config, store, 20, 30)
    assert _steps(config, store) == [10, 20, 30]
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "machine-1"))
    assert _steps(config, store) == [10, 20, 30]
    _log(config, store, 30, 40)
    assert _steps(config, store) == [10, 20, 30, 40]


def test_journals_can_be_fetched_on_any_machine(
    config: StudyConfig, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _log(config, store, 10, 20)
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "machine-2"))
    fetch_journals(store)
    [study] = tracked_studies(local_root(store))
    keys = [layout.journal(config, study_run) for study_run in (None, config.runs[0])]
    assert [run.journal.read_bytes() for run in study.runs()] == [store.read(key) for key in keys]


def test_points_logged_before_a_checkpoint_outlive_the_machine(
    config: StudyConfig, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_tracker(config, store, config.runs[0]) as tracker:
        tracker.metrics(10, {"loss": 0.1})
        tracker.artifact("note.txt", b"kept")
        tracker.sync()
        tracker.metrics(20, {"loss": 0.05})
        with monkeypatch.context() as other:
            other.setenv("DIT_CACHE", str(tmp_path / "machine-2"))
            assert _steps(config, store) == [10]
    folder = layout.tracking_state(config, config.runs[0])
    [file] = [key for key in store.list(folder) if "/files/" in key]
    assert store.read(file) == b"kept"


def test_points_logged_on_two_machines_while_the_bucket_is_full_are_stored_once(
    config: StudyConfig, store: Store, s3_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 moves to another machine and back; one write fails after the server has stored it, others before."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    journal = layout.journal(config, config.runs[0])
    _log(config, store, 280)
    s3_proxy.fail_after_storing(507, "PUT", journal)
    _log(config, store, 290)
    s3_proxy.faults.append(lambda handler: refused(handler, journal))
    _log(config, store, 300)
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "machine-2"))
    assert _steps(config, store) == [280, 290]
    _log(config, store, 290, 300)
    s3_proxy.lost = None
    s3_proxy.faults.clear()
    _log(config, store, 310)
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "machine-1"))
    _log(config, store, 320)
    logged = [entry.step for entry in parse(store.read(journal)) if entry.kind == "metrics"]
    assert sorted(step for step in logged if step is not None) == [280, 290, 300, 310, 320]
    assert sorted(_steps(config, store)) == [280, 290, 300, 310, 320]


def refused(handler: BaseHTTPRequestHandler, part: str) -> bool:
    """Answer a write as a full bucket does."""
    if handler.command != "PUT" or part not in handler.path:
        return False
    handler.send_response(507)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def test_results_removed_from_the_store_are_not_continued_from_the_cache(config: StudyConfig, store: Store) -> None:
    _log(config, store, 10)
    store.delete(layout.study(config))
    _log(config, store, 10, 20)
    assert _steps(config, store) == [10, 20]
    journal = store.read(layout.journal(config, config.runs[0]))
    assert journal.count(b'"metrics"') == 2


def test_a_store_that_fails_at_the_end_does_not_fail_the_training(
    config: StudyConfig, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: S3Store, key: str, data: bytes) -> None:  # noqa: ARG001
        raise StoreError(f"{key}: the store is full; make room")

    with open_tracker(config, store, config.runs[0]) as tracker:
        tracker.metrics(10, {"loss": 0.1})
        monkeypatch.setattr(S3Store, "write", refuse)
        tracker.sync()
    assert "the store is full" in capsys.readouterr().out
    assert _steps(config, store) == [10]


def test_without_a_server_runs_stay_on_this_machine_with_one_message(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    config = study_file.load(STUDY)
    study_run = config.runs[0]
    with open_tracker(config, store, study_run) as tracker:
        tracker.metrics(10, {"loss": 0.1})
    _log(config, store, 20)
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    assert capsys.readouterr().out.count("MLFLOW_TRACKING_URI") == 1
    client: Any = MlflowClient(tracking_uri=f"sqlite:///{local_root(store)}/mlflow.db")
    record = read_record(store, layout.tracking_run(config, study_run), TrackingRun)
    assert record is not None
    run = client.get_run(record.run_id)
    assert (run.info.run_name, run.info.status) == (study_run.name, "FINISHED")
    history = client.get_metric_history(record.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(10, 0.1), (20, 1 / 20)]


def test_each_seed_has_a_run_of_its_own_that_can_be_grouped_by_variant(store: Store) -> None:
    config = study_file.load(STUDY, ["seeds=2"])
    for study_run in config.runs_of(config.variants[0]):
        with open_tracker(config, store, study_run) as tracker:
            tracker.metrics(10, {"loss": 0.1})
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    client: Any = MlflowClient(tracking_uri=f"sqlite:///{local_root(store)}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string=f"name = '{config.study}'")
    runs = client.search_runs([experiment.experiment_id], f"tags.`dit.variant` = '{config.variants[0]}'")
    assert {run.info.run_name for run in runs} == {config.variants[0], f"{config.variants[0]} seed 1"}


def test_journals_of_lost_machines_are_shipped_from_the_store(
    config: StudyConfig, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machines ended before they reached the server."""
    variants = config.runs[:2]
    for study_run in variants:
        with open_tracker(config, store, study_run) as tracker:
            tracker.metrics(10, {"loss": 0.5, "fd_digits": 20.0})
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "machine-2"))
    config = study_file.load(STUDY)
    for _ in range(2):
        collect(config, store, config.runs)
        assert flush(config, store, timeout=PATIENCE_SECONDS)
    client: Any = MlflowClient(tracking_uri=f"sqlite:///{local_root(store)}/mlflow.db")
    for study_run in variants:
        record = read_record(store, layout.tracking_run(config, study_run), TrackingRun)
        assert record is not None
        assert client.get_run(record.run_id).info.status == "FINISHED"
        for key, value in (("loss", 0.5), ("fd_digits", 20.0)):
            history = client.get_metric_history(record.run_id, key)
            assert [(point.step, point.value) for point in history] == [(10, value)]


def test_a_run_whose_machines_were_killed_ends_failed(
    config: StudyConfig, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_run, other = config.runs[:2]
    _log(config, store, 10)
    *lines, ended = store.read(layout.journal(config, study_run)).splitlines(keepends=True)
    assert b"FINISHED" in ended
    store.write(layout.journal(config, study_run), b"".join(lines))
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "machine-2"))
    config = study_file.load(STUDY)
    reason = DitError("pod w-1 (rank 1), OOMKilled")
    for failed in (study_run, other):
        end_failed(config, store, failed, reason)
    client: Any = MlflowClient(tracking_uri=f"sqlite:///{local_root(store)}/mlflow.db")
    record = read_record(store, layout.tracking_run(config, study_run), TrackingRun)
    assert record is not None
    run = client.get_run(record.run_id)
    assert run.info.status == "FAILED"
    assert str(reason) in run.data.tags.values()
    assert [point.step for point in client.get_metric_history(record.run_id, "loss")] == [10]
    (parent,) = client.search_runs([record.experiment_id], f"attributes.run_name = '{config.study}'")
    assert parent.info.status == "FAILED"
    # The other variant never started.
    assert read_record(store, layout.tracking_run(config, other), TrackingRun) is None
