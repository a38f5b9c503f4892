"""Results that somebody else made reach only the files, servers and folders that this machine chose."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tracked_study import STUDY, VARIANTS

from dit.errors import ConfigError, InputError, StoreError
from dit.storage import Store, open_store
from dit.study import study_file
from dit.study.config import StudyConfig
from dit.tracking import open_tracker, read_points
from dit.tracking.journal import Entry, read_entries
from dit.tracking.lock_file import LockFile
from dit.tracking.mlflow_client import refuse_foreign
from dit.tracking.mlflow_ui import free_port, server_command
from dit.tracking.paths import local_root, run_folder, study_folder, tracked_studies
from dit.tracking.shipper_process import start_shipper
from dit.tracking.state import read_state
from dit.tracking.store_copy import StoreCopy, fetch_journals
from dit.tracking.target import Target, database_below, logged_facts, resolve_target

PRIVATE = b"a private key"


@pytest.fixture
def config() -> StudyConfig:
    return study_file.load(STUDY, [VARIANTS, "tracking.kind=none"])


@pytest.fixture
def store(tmp_path: Path, config: StudyConfig) -> Store:
    """Results with the journals of a study and of one variant, and a secret file beside them."""
    (tmp_path / "private").write_bytes(PRIVATE)
    store = open_store(tmp_path / "root")
    with open_tracker(config, store, config.runs[0]) as tracker:
        tracker.metrics(1, {"loss": 1.0})
    return store


@pytest.mark.parametrize(
    ("kind", "values", "step"),
    [
        ("artifact", {"name": "a", "sha256": "/etc/passwd"}, None),
        ("artifact", {"name": "a", "sha256": "../../../private"}, None),
        ("image", {"name": "../../.ssh/authorized_keys", "sha256": "0" * 64}, 1),
        ("artifact", {"name": "/etc/cron.d/x", "sha256": "0" * 64}, None),
        ("artifact", {"name": ["a"], "sha256": "0" * 64}, None),
        ("metrics", {"loss": "much"}, 1),
        ("metrics", {"loss": 1.0}, None),
        ("metrics", {"loss": 10**400}, 1),
        ("metrics", {"loss": 1.0}, 10**30),
        ("metrics", {"loss": 1.0}, -1),
        ("tags", {"a": "half of a pair: \ud83d"}, None),
        ("metrics", {"loss": 1.0}, "one"),
        ("params", {"depth": {"a": 1}}, None),
        ("status", {"status": "GREAT"}, None),
        ("run", {"id": "x' or '1'='1", "hash": "0", "variant": None}, None),
        ("run", {"id": ["1"], "hash": "0", "variant": None}, None),
    ],
)
def test_a_line_that_this_project_would_not_write_is_skipped(
    kind: Any, values: dict[str, Any], step: Any, tmp_path: Path
) -> None:
    sound = Entry("metrics", {"loss": 2.0}, 2)
    (tmp_path / "metrics.jsonl").write_bytes(Entry(kind, values, step).to_line() + sound.to_line())
    assert [entry for entry, _ in read_entries(tmp_path / "metrics.jsonl")] == [sound]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"kind": [], "values": {}, "time": 1}', "x" * (50 << 20)], ids=len)
def test_a_line_that_is_too_deep_or_too_long_is_skipped(line: str, tmp_path: Path) -> None:
    sound, journal = Entry("metrics", {"loss": 2.0}, 2), tmp_path / "metrics.jsonl"
    journal.write_bytes(line.encode() + b"\n" + sound.to_line())
    tracemalloc.start()
    try:
        assert read_entries(journal) == [(sound, journal.stat().st_size)]
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_pipe_or_a_folder_in_place_of_a_journal_is_refused(store: Store, config: StudyConfig) -> None:
    run = run_folder(config, store, None)
    for make in (os.mkfifo, os.mkdir):
        make(path := run.path / "metrics-x.jsonl")
        with pytest.raises(InputError, match=r"metrics-x\.jsonl: is not a file; remove it"):
            server_command(store.url, "127.0.0.1", 5000)
        path.unlink() if make is os.mkfifo else path.rmdir()


def test_a_file_is_sent_only_if_its_content_has_the_hash_of_the_journal(store: Store, config: StudyConfig) -> None:
    run = run_folder(config, store, None)
    copy, digest = StoreCopy(store, run), hashlib.sha256(PRIVATE).hexdigest()
    private = run.path.parents[2] / "private"
    run.files.mkdir(parents=True)
    (run.files / ("1" * 64)).symlink_to(private)
    (run.files / digest).write_bytes(PRIVATE)
    assert copy.fetch_file(str(private)) == b""
    assert copy.fetch_file("../../../../private") == b""
    assert copy.fetch_file("1" * 64) == b""
    assert copy.fetch_file(digest) == PRIVATE


def test_the_state_of_a_shipper_with_other_types_is_not_used(store: Store, config: StudyConfig) -> None:
    study, target = study_folder(config, store), resolve_target(config, store)
    state = read_state(study, target)
    state.path.parent.mkdir(parents=True, exist_ok=True)
    for offset, known in ((10, True), ("ten", False)):
        journals = {"1": {"run_id": "2", "offset": offset}}
        state.path.write_text(json.dumps({"target": target.digest, "journals": journals}))
        assert bool(read_state(study, target).journals) is known


@pytest.mark.parametrize("experiment", ["../../../elsewhere", "..", "team/../../../x", "/etc"])
def test_an_experiments_name_does_not_lead_its_artifacts_out_of_the_root(
    experiment: str, store: Store, config: StudyConfig, tmp_path: Path
) -> None:
    study = study_folder(config, store)
    facts = {"experiment": experiment, "uri": "http://elsewhere", "last_step": "none", "study": "other"}
    with open(study.journal, "ab") as journal:
        journal.write(Entry("study", facts).to_line())
    assert logged_facts(study)["study"] == "digits"
    target = database_below(tmp_path / "root", store, study, records_runs=True)
    assert target.uri == f"sqlite:///{tmp_path}/root/mlflow.db"
    assert target.artifacts is not None
    assert target.artifacts.startswith((tmp_path / "root/mlartifacts").as_uri())
    assert ".." not in target.artifacts


@pytest.mark.parametrize("location", ["s3://elsewhere/x", "file:///etc", "{root}/../out", "http://elsewhere/x"])
@pytest.mark.parametrize("table", ["experiments", "runs"])
def test_a_database_that_names_another_place_for_artifacts_is_refused(
    table: str, location: str, store: Store, config: StudyConfig, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    own = {"experiments": f"{root.as_uri()}/mlartifacts", "runs": f"{root.as_uri()}/mlartifacts/1"}
    target = resolve_target(config, store)
    for named, refused in ((own, False), ({**own, table: location.format(root=root.as_uri())}, True)):
        target_file = root / "mlflow.db"
        target_file.unlink(missing_ok=True)
        with closing(sqlite3.connect(target_file)) as database, database:
            database.execute("CREATE TABLE experiments (experiment_id, name, artifact_location)")
            database.execute("CREATE TABLE runs (experiment_id, name, artifact_uri)")
            database.execute("INSERT INTO experiments VALUES (1, 'digits', ?)", [named["experiments"]])
            database.execute("INSERT INTO runs VALUES (1, 'x', ?)", [named["runs"]])
        if refused:
            with pytest.raises(StoreError, match="not below its folder; remove the database"):
                refuse_foreign(target)
        else:
            refuse_foreign(target)


@pytest.mark.parametrize("place", ["mlflow.db", "mlartifacts", "studies/digits/tracking", "studies/x/metrics.jsonl"])
def test_a_link_that_leads_out_of_the_results_is_refused(place: str, store: Store, tmp_path: Path) -> None:
    link = Path(store.url.removeprefix("file://")) / place
    link.parent.mkdir(exist_ok=True)
    if link.exists():
        link.rename(tmp_path / "moved")
    link.symlink_to(tmp_path / "private")
    with pytest.raises(InputError, match=f"{place}: is a link that leads out"):
        server_command(store.url, "127.0.0.1", 5000)
    assert (tmp_path / "private").read_bytes() == PRIVATE


def test_a_lock_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "private").write_bytes(PRIVATE)
    (tmp_path / "shipper.lock").symlink_to(tmp_path / "private")
    with pytest.raises(OSError, match="symbolic links"):
        LockFile.take(tmp_path / "shipper.lock")
    assert (tmp_path / "private").read_bytes() == PRIVATE


def test_a_key_of_a_bucket_does_not_lead_out_of_the_cache(s3_environment: None, tmp_path: Path) -> None:  # noqa: ARG001
    from s3_proxy import BUCKET, raw

    line = Entry("run", {"id": "0" * 16, "hash": "0", "variant": None, "study": "x"}).to_line()
    for key in ("studies/../../../../evil/metrics.jsonl", "studies/digits/metrics.jsonl"):
        raw().put_object(Bucket=BUCKET, Key=f"root/{key}", Body=line)
    fetch_journals(open_store(f"s3://{BUCKET}/root"))
    assert [path.parent.name for path in tmp_path.rglob("metrics.jsonl")] == ["digits"]


@pytest.mark.parametrize("user", ["user:swordfish@", "swordfish@"])
@pytest.mark.parametrize(
    ("key", "address"),
    [
        ("tracking.uri", "http://{}mlflow:5000"),
        ("dataset.source", "{{kind: tar, path: 's3://{}bucket/x'}}"),
        ("evaluation.extractor_weights", "HTTPS://{}host/weights.pt"),
        ("description", "see http://{}host/"),
        ("cluster.env", "{{PIP_INDEX_URL: 'https://{}host/simple'}}"),
    ],
)
def test_an_address_with_a_user_is_refused_and_not_repeated(key: str, address: str, user: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}.*an address with a user or a password") as caught:
        study_file.load(STUDY, [f"{key}={address.format(user)}"])
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize(("named", "sent"), [("http://mlflow:5000", True), ("http://mlflow:5001", False), ("", False)])
def test_credentials_are_sent_only_to_the_server_that_the_environment_names(
    named: str, sent: bool, store: Store, config: StudyConfig, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from dit.tracking.shipper_process import _environment

    monkeypatch.setenv("HOME", str(run_folder(config, store, None).path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "secret")
    target = Target("http://mlflow:5000", None, store.url, "digits", "digits")
    environment = _environment(target, Path("/tmp"))
    assert [name for name in environment if environment[name] == "secret"] == (
        [f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD", "TOKEN")] if sent else []
    )
    assert ("MLFLOW_TRACKING_URI does not name that server" in capsys.readouterr().out) is not sent
    study = study_folder(config, store)
    (study.path / ".mlflow").mkdir()
    (study.path / ".mlflow/credentials").write_text("[mlflow]\n")
    if not sent:
        with pytest.raises(StoreError, match="credentials would be sent to http://mlflow:5000"):
            start_shipper(study, target)


@pytest.mark.parametrize("port", [70000, 0, -1])
def test_a_port_that_does_not_exist_is_one_line(port: int) -> None:
    with pytest.raises(InputError, match=f"--port {port}: must be from 1 to 65535"):
        free_port("127.0.0.1", port)


def test_a_host_that_this_machine_does_not_have_is_one_line() -> None:
    with pytest.raises(InputError, match=r"--host 192\.0\.2\.1: "):
        free_port("192.0.2.1", 5000)


def test_a_home_that_cannot_be_written_names_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from dit.storage.base import cache_dir, exclusive

    monkeypatch.delenv("DIT_CACHE", raising=False)
    monkeypatch.setenv("HOME", os.devnull)
    with pytest.raises(StoreError, match="set DIT_CACHE to a folder"), exclusive(cache_dir() / "locks/x"):
        pytest.fail("must not begin")


def test_journals_of_a_read_only_root_are_shown_from_the_cache(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        store = open_store(disk)
        with open_tracker(config, store, config.runs[0]) as tracker:
            tracker.metrics(1, {"loss": 1.0})
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        fetch_journals(store)
        folder = local_root(store)
        assert folder.is_relative_to(tmp_path / "cache")
        assert [study.path.name for study in tracked_studies(folder)] == ["digits"]
        assert [point.value for point in read_points(config, store, config.runs[0])] == [1.0]
    finally:
        subprocess.run(["umount", disk], check=True)
