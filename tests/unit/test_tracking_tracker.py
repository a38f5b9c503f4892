import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from dit.errors import DataError, InputError, StoppedError
from dit.storage import open_store
from dit.study import layout, study_file
from dit.tracking import flush, open_tracker, read_points, reconcile
from dit.tracking.journal import read_entries, read_header
from dit.tracking.mlflow_ui import server_command
from dit.tracking.paths import local_root, run_folder, study_folder
from dit.tracking.state import Shipped, read_target, waiting, write_json, write_shipped, write_target
from dit.tracking.target import resolve_target

ROOT = Path(__file__).parents[2]


def study(*overrides):
    return study_file.load(ROOT / "configs" / "digits.yaml", ["tracking.kind=none", *overrides])


@pytest.fixture
def config():
    return study()


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "root")


def statuses(store, config, spec):
    path = Path(store.root / layout.journal(config, spec))
    found = [entry.values for entry, _ in read_entries(path) if entry.kind == "status"]
    return [(values["status"], values.get("error")) for values in found]


def test_importing_it_imports_neither_mlflow_nor_torch():
    code = "import dit.tracking, dit.tracking.mlflow_ui, sys;"
    code += "print(sorted({'mlflow', 'torch', 'boto3'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_the_repository_does_not_shadow_mlflow():
    assert not list((ROOT / "mlflow").glob("**/*.py"))


def test_a_resumed_run_adds_what_is_new_and_nothing_twice(config, store):
    spec = config.specs[0]
    for start in (0, 40, 20):  # as after kills, from checkpoints
        with open_tracker(config, store, spec) as tracker:
            for step in range(start + 10, start + 60, 10):
                tracker.metrics(step, {"loss": 1 / step, "rate": 100.0 + start})
    points = read_points(config, store, spec)
    losses = [(point.step, point.value) for point in points if point.key == "loss"]
    assert losses == [(step, 1 / step) for step in range(10, 100, 10)]
    assert len(points) == 2 * len(losses)


def test_steps_may_come_in_any_order(config, store):
    spec = config.specs[0]
    for step in (800, 200, 400, 200):
        with open_tracker(config, store, spec) as tracker:
            tracker.metrics(step, {"fd_digits": float(step)})
            tracker.metrics(step, {"precision": math.nan})
    assert [point.step for point in read_points(config, store, spec) if point.key == "fd_digits"] == [800, 200, 400]


def test_runs_of_variants_and_of_the_study_are_apart(config, store):
    first, second, *_ = config.specs
    for number, spec in enumerate((first, second, None)):
        with open_tracker(config, store, spec) as tracker:
            tracker.metrics(1, {"loss": float(number)})
    assert [[p.value for p in read_points(config, store, spec)] for spec in (first, second, None)] == [[0], [1], [2]]
    assert read_points(config, store, config.specs[2]) == []


def test_all_ranks_but_the_first_log_nothing(config, store):
    with open_tracker(config, store, config.specs[0], enabled=False) as tracker:
        tracker.params({"depth": 2})
        tracker.metrics(1, {"loss": 1.0})
        tracker.tags({"a": "b"})
        tracker.artifact("a", b"a")
        tracker.image("a", 1, b"a")
        tracker.sync()
        assert tracker.run_id is None
    assert store.list() == []


def test_how_a_run_ended_is_in_its_journal(config, store):
    spec = config.specs[0]
    with open_tracker(config, store, spec):
        pass
    stopped = (StoppedError("stopped by a signal", 15), KeyboardInterrupt(), SystemExit(143))
    for problem in (DataError("shard 3 is\ndamaged"), ZeroDivisionError("x"), *stopped):
        with pytest.raises(type(problem)), open_tracker(config, store, spec):
            raise problem
    ends = [status for status in statuses(store, config, spec) if status[0] != "RUNNING"]
    assert ends == [
        ("FINISHED", None),
        ("FAILED", "shard 3 is damaged"),
        ("FAILED", "ZeroDivisionError: x"),
        *[("KILLED", None)] * len(stopped),
    ]


def test_a_killed_writer_is_found_by_the_next(config, store):
    spec = config.specs[0]
    code = (
        "import os, sys; from dit import study_file; from dit.storage import open_store\n"
        "from dit.tracking import open_tracker\n"
        "config = study_file.load(sys.argv[1], ['tracking.kind=none'])\n"
        "with open_tracker(config, open_store(sys.argv[2]), config.specs[0]) as tracker:\n"
        "    tracker.metrics(1, {'loss': 1.0})\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(ROOT / "configs/digits.yaml"), str(store.root)], check=False)
    assert run.returncode == -9
    assert [point.step for point in read_points(config, store, spec)] == [1]
    reconcile(config, store)
    reconcile(config, store)
    assert [status for status, _ in statuses(store, config, spec)] == ["RUNNING", "KILLED"]


def test_parameters_and_files_that_did_not_change_are_kept_once(config, store):
    spec = config.specs[0]
    for depth in (2, 2, 3):
        with open_tracker(config, store, spec) as tracker:
            tracker.params({"depth": depth, "patch": 2})
            tracker.artifact("health.jsonl", b"fine")
            tracker.image("grid", 100, b"png")
    journal = [entry for entry, _ in read_entries(store.root / layout.journal(config, spec))]
    assert [entry.values for entry in journal if entry.kind == "params"] == [
        {"depth": "2", "patch": "2"},
        {"depth": "3"},
    ]
    assert len([entry for entry in journal if entry.kind in ("artifact", "image")]) == 2


def test_a_changed_recipe_begins_anew(config, store):
    spec = config.specs[0]
    with open_tracker(config, store, spec) as tracker:
        tracker.metrics(10, {"loss": 1.0})
    changed = study("train.learning_rate=1e-4")
    with open_tracker(changed, store, spec) as tracker:
        tracker.metrics(10, {"loss": 2.0})
    assert [point.value for point in read_points(changed, store, spec)] == [2.0]
    longer = study("train.learning_rate=1e-4", "train.steps=2000")
    with open_tracker(longer, store, spec) as tracker:
        tracker.metrics(10, {"loss": 3.0})
    assert [point.value for point in read_points(longer, store, spec)] == [2.0]


def test_the_journal_is_lines_that_any_program_can_read(config, store):
    with open_tracker(config, store, config.specs[0]) as tracker:
        tracker.metrics(10, {"loss": 1.0})
    lines = (store.root / layout.journal(config, config.specs[0])).read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["run", "status", "metrics", "status"]


def test_without_mlflow_nothing_is_shipped(config, store):
    with open_tracker(config, store, None) as tracker:
        tracker.metrics(1, {"loss": 1.0})
    assert flush(config, store)
    assert not list(store.root.rglob("shipper*"))


def test_where_runs_go_by_default(store, monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    local = resolve_target(study(), store)
    assert local.uri == f"sqlite:///{store.root}/mlflow.db"
    assert local.artifacts == (store.root / "mlartifacts" / "digits").as_uri()
    assert local.experiment == "digits"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@mlflow:5000")
    remote = resolve_target(study("tracking.experiment=other"), store)
    assert (remote.uri, remote.artifacts, remote.experiment) == ("http://user:secret@mlflow:5000", None, "other")
    assert remote.address == "http://mlflow:5000"
    monkeypatch.chdir(tmp_path)
    assert resolve_target(study("tracking.uri=sqlite:///x.db"), store).uri == f"sqlite:///{tmp_path}/x.db"


def log_and_ship(config, store, target):
    """Lines that a server has, by what is remembered; the file that remembers it."""
    with open_tracker(config, store, None) as tracker:
        tracker.metrics(1, {"loss": 1.0})
    run = run_folder(config, store, None)
    identity = read_header(run.journal).values["id"]
    write_target(study_folder(config, store), target)
    write_shipped(run, identity, target, Shipped("1", run.journal.stat().st_size, status="FINISHED"))
    return run.shipped(identity)


def test_a_password_in_the_address_makes_no_other_server(store):
    target = resolve_target(study("tracking.uri=http://user:secret@mlflow:5000"), store)
    changed = resolve_target(study("tracking.uri=http://user:changed@mlflow:5000"), store)
    folder = study_folder(study(), store)
    file = log_and_ship(study(), store, target)
    assert not any("secret" in path.read_text() for path in (file, folder.target))
    assert [waiting(folder, one) for one in (target, changed, read_target(folder))] == [0, 0, 0]
    # As an earlier version wrote it.
    write_json(file, {target.digest: json.loads(file.read_text())[target.ledger]})
    assert waiting(folder, target) == 0


def test_what_waits_for_a_password_that_is_not_kept_is_said_and_not_tried(store, capsys):
    file = log_and_ship(study(), store, resolve_target(study("tracking.uri=http://user:secret@mlflow:5000"), store))
    said = []
    for _ in range(2):
        with pytest.raises(InputError, match="open http://mlflow:5000"):
            server_command(str(store.root), "127.0.0.1", 5000)
        said.append(capsys.readouterr().out)
        file.unlink(missing_ok=True)
    assert said[0] == ""
    assert "lines wait for http://mlflow:5000" in said[1]
    assert not list(store.root.rglob("shipper*"))


def test_an_address_without_a_password_is_remembered_under_its_name_of_old(store):
    target = resolve_target(study("tracking.uri=http://mlflow:5000"), store)
    assert (target.digest, target.ledger) == ("98cd55686abc", "98cd55686abc")


@pytest.mark.parametrize("uri", ["runs/mlruns", "file:///tmp/mlruns", "/tmp/mlruns"])
def test_a_folder_for_mlflow_is_refused_before_any_work(uri, store):
    config = study("tracking.kind=mlflow", f"tracking.uri={uri}")
    with pytest.raises(InputError, match=r"tracking\.uri"), open_tracker(config, store, None):
        pytest.fail("must not begin")
    assert store.list() == []


def test_places_follow_the_layout(config, store):
    spec = config.specs[0]
    with open_tracker(config, store, spec):
        pass
    assert (local_root(store) / layout.journal(config, spec)).is_file()
    assert [run.path.name for run in study_folder(config, store).runs()] == ["digits", spec.slug]
