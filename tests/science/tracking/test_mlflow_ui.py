"""`dit ui` and a study's view on MLflow's server, and outages of that server."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import pytest
from http_fakes import serve as proxy
from mlflow import MlflowClient
from PIL import Image
from ports import reserved_port
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
    train,
    until,
)

from dit.storage import Store, open_store
from dit.study import study_file
from dit.tracking import flush, open_tracker, read_points, reconcile
from dit.tracking.mlflow_client import MlflowRuns
from dit.tracking.mlflow_ui import server_command
from dit.tracking.mlflow_view import view_page, view_tag
from dit.tracking.target import resolve_target

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


class Gate:
    """A port that forwards to a server while it is open."""

    def __init__(self, port: int, upstream: int) -> None:
        self.port, self._upstream = port, upstream
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        for connection in [self._listener, *self._open]:
            if connection is not None:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
        self._listener, self._open = None, []

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:
                return
            self._open += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class Served:
    """A study's results, and the address that shows them."""

    store: Store
    address: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    config, store = study_file.load(STUDY, [VARIANTS]), open_store(folder)
    with open_tracker(config, store, config.run(SHOWN)) as tracker:
        tracker.image("samples", 10, picture(255))
        tracker.metrics(20, {"loss": 0.5})
    until(lambda: arrived(config, store), "the run has arrived")
    with reserved_port() as number:
        address, command = server_command(str(folder), "127.0.0.1", number)
        process = _serve(command, folder)
        yield Served(store, address)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    end_shippers(folder)


@pytest.fixture
def port() -> Iterator[int]:
    """A free port, where a server starts later."""
    with reserved_port() as number:
        yield number


def _serve(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "server.log", "wb") as log:
        return subprocess.Popen(
            command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )


def _answers(url: str) -> bool:
    with suppress(OSError):
        return urlopen(url, timeout=5).status == 200
    return False


def test_the_pages_show_the_tracked_runs(served: Served) -> None:
    base, _, page = served.address.partition("/#")
    until(lambda: _answers(f"{base}/health"), "the pages are served")
    tracked = Tracked(base)
    run = tracked.run(SHOWN).info
    assert page == view_page(run.experiment_id, "digits").removeprefix("/#")
    assert view_tag("digits") in tracked.client.get_experiment(run.experiment_id).tags
    assert tracked.history(SHOWN, "loss") == [(20, 0.5)]
    [png] = [path for path in tracked.files(SHOWN) if path.endswith(".png")]
    image = urlopen(f"{base}/get-artifact?run_id={run.run_id}&path={quote(png)}", timeout=60).read()
    assert Image.open(io.BytesIO(image)).size == (64, 32)


def test_dit_ui_prints_its_address_once_it_answers_and_leaves_no_server_behind(served: Served) -> None:
    with reserved_port() as port:
        pass
    root = served.store.url.removeprefix("file://")
    command = [sys.executable, "-m", "dit", "ui", "--root", root, "--port", str(port)]
    # A proxy cannot reach servers on this machine, so it must not be used.
    with proxy(lambda _: (200, "OK")) as elsewhere:
        environment = os.environ | {"http_proxy": elsewhere, "no_proxy": ""}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        words = next(line.split() for line in process.stdout if "http://" in line)
        address = next(word for word in words if word.startswith("http://"))
    assert "viewStateShareKey=digits" in address
    health = f"{address.partition('/#')[0]}/health"
    assert _answers(health)
    # Other users of the machine reach the port, too.
    base = health.removesuffix("/health")
    for path in ("", "/ajax-api/2.0/mlflow/experiments/search?max_results=9", "/get-artifact?run_id=1&path=x"):
        with pytest.raises(HTTPError, match="401"):
            urlopen(f"{base}{path}", timeout=60)
    password = words[words.index("password") + 1]
    login = base64.b64encode(f"dit:{password}".encode()).decode()
    request = Request(
        f"{base}/ajax-api/2.0/mlflow/experiments/search?max_results=9", headers={"Authorization": f"Basic {login}"}
    )
    assert "digits" in urlopen(request, timeout=60).read().decode()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE_SECONDS) == 0
    until(lambda: not _answers(health), "the server has gone")


def test_a_view_changed_by_a_person_stays_and_an_outdated_one_is_replaced(root: Path) -> None:
    config, store = study_file.load(STUDY, [VARIANTS, "tracking.experiment=viewed"]), open_store(root)
    with open_tracker(config, store, config.run(SHOWN)) as tracker:
        tracker.metrics(20, {"loss": 0.5})
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    client: Any = MlflowClient(tracking_uri=database(store))
    experiment, name = client.get_experiment_by_name("viewed"), view_tag("digits")
    made = experiment.tags[name]
    assert config.evaluation.metric in resolve_target(config, store).metric
    changed = made.replace(f'"updatedAt": {experiment.creation_time}', f'"updatedAt": {experiment.creation_time + 1}')
    assert changed != made
    for before, after in ((changed, changed), (made.replace("Scaling", "Former"), made)):
        client.set_experiment_tag(experiment.experiment_id, name, before)
        MlflowRuns(resolve_target(config, store))
        assert client.get_experiment_by_name("viewed").tags[name] == after


def test_an_outage_of_the_server_loses_no_point(served: Served, root: Path, port: int) -> None:
    gate = Gate(port, urlsplit(served.address).port or 0)
    uri = f"http://127.0.0.1:{gate.port}"
    overrides = (f"tracking.uri={uri}", "tracking.experiment=outage")
    config, store = study_file.load(STUDY, [VARIANTS, *overrides]), open_store(root)
    study_run = config.runs[0]
    train(store, study_run, 10, 50, *overrides)
    assert not flush(config, store, timeout=0.5)
    gate.open()
    with open_tracker(config, store, study_run) as tracker:
        until(lambda: tracker.run_id, "the server has been reached")
        tracker.metrics(60, {"loss": 1 / 60})
        tracker.image("samples", 60, picture(0))
        until(lambda: len(Tracked(uri, "outage").history(study_run.name, "loss")) == 6, "points arrive")
        gate.shut()
        tracker.metrics(70, {"loss": 1 / 70})
        tracker.artifact("report.html", b"<html>")
    assert [point.step for point in read_points(config, store, study_run) if point.key == "loss"] == list(
        range(10, 80, 10)
    )
    gate.open()
    reconcile(config, store)
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    expected = {"digits": "FINISHED", study_run.name: "FINISHED"}
    until(lambda: Tracked(uri, "outage").statuses == expected, f"runs stand at {expected}")
    tracked = Tracked(uri, "outage")
    assert tracked.history(study_run.name, "loss") == losses(*range(10, 80, 10))
    assert {"report.html"} < set(tracked.files(study_run.name))
    gate.shut()
