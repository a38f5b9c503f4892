"""A server or a database that lost what was sent is filled again from the journals, by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
from ports import reserved_port
from tracked_study import (
    PATIENCE_SECONDS,
    STUDY,
    VARIANTS,
    Tracked,
    arrived,
    database,
    end_shippers,
    losses,
    until,
)

from dit.storage import Store, open_store
from dit.study import study_file
from dit.study.config import StudyConfig
from dit.tracking import flush, open_tracker
from dit.tracking.mlflow_ui import server_command
from dit.tracking.target import sqlite_path, sqlite_uri

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
LOGIN = {"MLFLOW_TRACKING_USERNAME": "somebody", "MLFLOW_TRACKING_PASSWORD": "of twelve letters"}
ADMINISTRATOR = {"MLFLOW_AUTH_ADMIN_USERNAME": "admin", "MLFLOW_AUTH_ADMIN_PASSWORD": "another of twelve"}
FIRST, SECOND = "mini-S/2", "mini-B/2"


@dataclass
class Server:
    """An MLflow server at a fixed address, whose database can be replaced while it is down."""

    folder: Path
    port: int
    with_users: bool = False
    """Whether it checks the permissions of `somebody`, who is no administrator, as the deployed server does."""
    number: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def backend(self) -> str:
        return f"sqlite:///{self.folder}/{self.number}.db"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.backend]
        command += ["--registry-store-uri", self.backend, "--artifacts-destination", f"{self.folder}/{self.number}"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        if self.with_users:
            command += ["--app-name", "basic-auth"]
            self._create_user()
            quiet |= {"MLFLOW_AUTH_CONFIG_PATH": f"{self.folder}/basic_auth.ini", "MLFLOW_FLASK_SERVER_SECRET_KEY": "x"}
            quiet |= ADMINISTRATOR
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        until(self._answers, "the server answers")

    def _create_user(self) -> None:
        users, settings = f"{self.backend}.users", self.folder / "basic_auth.ini"
        settings.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {users}\n")
        store = SqlAlchemyStore()
        store.init_db(users)
        store.create_user(*LOGIN.values())

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _answers(self) -> bool:
        with suppress(OSError):
            return urlopen(f"{self.address}/health", timeout=5).status == 200
        return False


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with reserved_port() as port:
        pass
    server = Server(tmp_path, port, with_users=request.param == "with-users")
    if server.with_users:
        for key, value in {**LOGIN, "MLFLOW_TRACKING_URI": server.address}.items():
            monkeypatch.setenv(key, value)
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "taken"), [("open", False), ("with-users", True)], ids=["empty", "number-taken"], indirect=["server"]
)
def test_a_server_deployed_anew_while_training_goes_on_gets_everything(taken: bool, server: Server, root: Path) -> None:
    config, store = study_file.load(STUDY, [VARIANTS, f"tracking.uri={server.address}"]), open_store(root)
    with open_tracker(config, store, config.run(FIRST)) as tracker:
        tracker.metrics(10, {"loss": 1 / 10})
        tracker.artifact("report.html", b"<html>")
        until(lambda: arrived(config, store), "the first point is in the old server")
        server.stop()
        server.number += 1
        if taken:
            others: Any = MlflowClient(tracking_uri=server.backend)
            for name in ("other", "another"):
                others.create_experiment(name, f"{server.folder}/other")
        server.start()
        # A variant that starts now has no run whose loss could be noticed.
        with open_tracker(config, store, config.run(SECOND)) as second:
            second.metrics(10, {"loss": 1 / 10})
        tracker.metrics(20, {"loss": 1 / 20})
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    tracked = Tracked(server.address)
    assert tracked.history(FIRST, "loss") == losses(10, 20)
    assert tracked.history(SECOND, "loss") == losses(10)
    assert tracked.files(FIRST) == ["report.html"]
    for name in ("other", "another") if taken else ():
        assert Tracked(server.address, name).runs == []


@pytest.fixture
def tracked(root: Path) -> tuple[StudyConfig, Store]:
    """A study whose one run has arrived in the root's database."""
    config, store = study_file.load(STUDY, [VARIANTS]), open_store(root)
    with open_tracker(config, store, config.run(FIRST)) as tracker:
        tracker.metrics(10, {"loss": 1 / 10})
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    return config, store


def _damage(path: Path, how: str) -> None:
    if how == "removed":
        path.unlink()
    elif how == "text":
        path.write_text("not a database " * 1000)
    elif how == "cut":
        os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("how", ["removed", "text", "cut"])
def test_a_lost_or_damaged_database_is_filled_again_by_the_next_start_of_the_study(
    how: str, tracked: tuple[StudyConfig, Store], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, store = tracked
    end_shippers(root)
    _damage(root / "mlflow.db", how)
    if how != "removed":
        # Whoever only shows results mends them, too.
        with reserved_port() as port:
            server_command(str(root), "127.0.0.1", port)
        assert "mlflow.db was damaged" in capsys.readouterr().out
        assert (root / "mlflow.db.damaged-1").exists()
    with open_tracker(config, store, config.run(SECOND)) as tracker:
        tracker.metrics(10, {"loss": 1 / 10})
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    assert {FIRST, SECOND} < set(Tracked(database(store)).statuses)
    assert Tracked(database(store)).history(FIRST, "loss") == losses(10)


def test_a_database_removed_while_a_training_runs_is_filled_again(root: Path) -> None:
    config, store = study_file.load(STUDY, [VARIANTS]), open_store(root)
    with open_tracker(config, store, config.run(FIRST)) as tracker:
        tracker.metrics(10, {"loss": 1 / 10})
        until(lambda: arrived(config, store), "the first point has arrived")
        (root / "mlflow.db").unlink()
        tracker.metrics(20, {"loss": 1 / 20})
        until(lambda: (root / "mlflow.db").exists(), "there is a database again")
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    assert Tracked(database(store)).history(FIRST, "loss") == losses(10, 20)


def test_a_damaged_database_of_somebody_else_is_named_at_once_and_left_alone(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "shared.db"
    shared.write_text("not a database " * 1000)
    config = study_file.load(STUDY, [VARIANTS, f"tracking.uri=sqlite:///{shared}"])
    with open_tracker(config, open_store(root), config.run(FIRST)) as tracker:
        tracker.metrics(10, {"loss": 1 / 10})
    lines = capsys.readouterr().out.splitlines()
    assert any("shared.db: is damaged (file is not a database); restore it, or remove it" in line for line in lines)
    assert shared.read_text().startswith("not a database")


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b", "ü b", "a%3Fb"])
def test_a_root_with_special_characters_keeps_its_database(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    assert sqlite_path(sqlite_uri(path)) == path
    client: Any = MlflowClient(tracking_uri=sqlite_uri(path))
    client.create_experiment("digits", (path.parent / "mlartifacts").as_uri())
    assert path.exists()
