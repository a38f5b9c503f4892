"""From a stage's calls to what MLflow's own client finds: databases, a server over HTTP, kills and outages."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient
from PIL import Image
from ports import reserved_port

from dit import layout, study_file
from dit.config import StudyConfig
from dit.errors import DataError, StoppedError
from dit.storage import Store, open_store, read_record
from dit.tracking import flush, open_tracker, read_points, reconcile
from dit.tracking.lease import is_held
from dit.tracking.places import run_folder, study_folder
from dit.tracking.sink import Sink
from dit.tracking.state import TrackingRun, waiting
from dit.tracking.target import resolve_target
from dit.tracking.ui import server_command
from dit.tracking.views import view_page, view_tag
from dit.variants import ModelSpec

STUDY = Path(__file__).parents[2] / "configs" / "digits.yaml"
# One for every test, and one that is there from the beginning.
VARIANTS = "variants=[mini-S/2, mini-B/2, mini-L/2, mini-XL/2, mini-S/4, mini-B/4, mini-L/4]"
SHOWN = "mini-S/2"
PATIENCE_SECONDS = 240.0
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
TRAINING = """
import sys, time
from dit import study_file
from dit.storage import open_store
from dit.tracking import open_tracker
study, root, variant, first, last, then = sys.argv[1:7]
config = study_file.load(study, sys.argv[7:])
with open_tracker(config, open_store(root), config.spec(variant)) as tracker:
    for step in range(int(first), int(last) + 1, 10):
        tracker.metrics(step, {"loss": 1 / step, "images_per_second": time.time()})
    print("logged", flush=True)
    time.sleep(float(then))
"""


class Gate:
    """A port through which a server is reached, or not."""

    def __init__(self, port: int, upstream: int) -> None:
        self.port, self._upstream = port, upstream
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        for one in [self._listener, *self._open]:
            if one is not None:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
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
class Shared:
    """A study that most tests log to, each to a variant of its own: its shipper and its server start once."""

    config: StudyConfig
    store: Store
    address: str


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    root = tmp_path_factory.mktemp("shared")
    config, store = study_file.load(STUDY, [VARIANTS]), open_store(root)
    _runs_of_other_machines(_uri(store), config.study)
    with open_tracker(config, store, config.spec(SHOWN)) as tracker:
        tracker.image("samples", 10, _png(255))
        tracker.metrics(20, {"loss": 0.5})
    _until(lambda: _arrived(config, store), "the first run has arrived")
    with reserved_port() as port:
        address, command = server_command(str(root), "127.0.0.1", port)
        process = _serve(command, root)
        yield Shared(config, store, address)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _end_shippers(root)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Another root, such as that of another machine."""
    yield tmp_path / "root"
    _end_shippers(tmp_path)


@pytest.fixture
def port() -> Iterator[int]:
    """Where a server will be found, and not yet."""
    with reserved_port() as number:
        yield number


def _end_shippers(folder: Path) -> None:
    for lock in folder.rglob("shipper-*.lock"):
        if is_held(lock):
            os.kill(int(lock.read_text().split()[1]), signal.SIGKILL)


def _arrived(config: StudyConfig, store: Store) -> bool:
    return waiting(study_folder(config, store), resolve_target(config, store)) == 0


def _settled(config: StudyConfig, store: Store, **statuses: str) -> Found:
    """What the client sees once everything has arrived and the named runs, the study's among them, stand like this."""
    _until(lambda: _arrived(config, store), "all has arrived")
    _until(lambda: _stand(store, statuses), f"runs stand at {statuses}")
    return Found(_uri(store))


def _stand(store: Store, statuses: dict[str, str]) -> bool:
    return statuses.items() <= Found(_uri(store)).statuses.items()


def _serve(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "server.log", "wb") as log:
        return subprocess.Popen(
            command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )


def _until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.1)


def _answers(url: str) -> bool:
    with suppress(OSError):
        return urlopen(url, timeout=5).status == 200
    return False


def _train(
    store: Store, spec: ModelSpec, first: int, last: int, *overrides: str, then: float = 0, wait: bool = True
) -> subprocess.Popen[str]:
    """A training in a process of its own, which has logged when this returns."""
    command = [sys.executable, "-c", TRAINING, str(STUDY), store.url, spec.name]
    command += [str(first), str(last), str(then), VARIANTS, *overrides]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "logged\n"
    if wait:
        assert process.wait() == 0
    return process


class Found:
    """What a client sees of a study's experiment."""

    def __init__(self, uri: str, experiment: str = "digits") -> None:
        self.client: Any = MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name(experiment)
        self.runs = self.client.search_runs([found.experiment_id]) if found else []

    def run(self, name: str) -> Any:
        [run] = [run for run in self.runs if run.info.run_name == name]
        return run

    def history(self, name: str, key: str) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.run(name).info.run_id, key)
        return sorted((point.step, point.value) for point in history)

    def files(self, name: str, folder: str | None = None) -> list[str]:
        files = self.client.list_artifacts(self.run(name).info.run_id, folder)
        return [path for file in files for path in (self.files(name, file.path) if file.is_dir else [file.path])]

    @property
    def statuses(self) -> dict[str, str]:
        return {run.info.run_name: run.info.status for run in self.runs}


def _uri(store: Store) -> str:
    return f"sqlite:///{store.url.removeprefix('file://')}/mlflow.db"


def _losses(*steps: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in steps]


def _png(grey: int) -> bytes:
    target = io.BytesIO()
    Image.new("L", (64, 32), grey).save(target, "PNG")
    return target.getvalue()


def _runs_of_other_machines(uri: str, study: str) -> None:
    """A run that was last heard of an hour ago, and one that lives, by a clock that is ahead: it outlives the tests."""
    client: Any = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment(study, uri.replace("sqlite://", "file://").replace("mlflow.db", "artifacts"))
    now = int(time.time() * 1000)
    for name, heard_of in {"silent": now - 3_600_000, "heard": now + 3_600_000}.items():
        tags = {"dit.study": study, "dit.heartbeat": str(heard_of)}
        client.create_run(experiment, start_time=now - 7_200_000, run_name=name, tags=tags)


@pytest.mark.slow
def test_the_stages_of_a_study_become_one_run_per_variant_below_one_parent(shared: Shared) -> None:
    config, store = shared.config, shared.store
    first, second = config.spec("mini-B/2"), config.spec("mini-L/2")
    for spec in (first, second):
        with open_tracker(config, store, spec) as tracker:
            tracker.params({"depth": spec.depth, "patch": spec.patch})
            tracker.metrics(0, {"gflops": 0.5, "fid@50k:cfg=1.5": 2.0})
            tracker.metrics(10, {"loss": 0.1})
    with open_tracker(config, store, first) as tracker:
        tracker.params({"depth": first.depth, "patch": 99})
        tracker.image("samples", 200, _png(0))
        tracker.image("samples", 400, _png(255))
        tracker.image("broken", 400, b"not a PNG")
        tracker.artifact("health/health.jsonl", b"fine\n")
    with pytest.raises(DataError), open_tracker(config, store, second):
        raise DataError("part 3 is damaged")
    with open_tracker(config, store, None) as tracker:
        tracker.artifact("report.html", b"<html>")
    found = _settled(config, store, **{"digits": "FINISHED", first.name: "FINISHED", second.name: "FAILED"})
    assert found.run(second.name).data.tags["error"] == "part 3 is damaged"
    parent = found.run("digits")
    for spec in (first, second):
        run = found.run(spec.name)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params == {"depth": str(spec.depth), "patch": str(spec.patch)}
        assert run.data.metrics == {"gflops": 0.5, "fid_50k:cfg_1.5": 2.0, "loss": 0.1}
    assert found.run(first.name).data.tags["param_changed/patch"] == "99"
    assert found.files("digits") == ["report.html"]
    images = [path for path in found.files(first.name) if path.endswith(".png")]
    assert sorted(path.split("+")[2] for path in images) == ["200", "400"]
    assert "health/health.jsonl" in found.files(first.name)
    record = read_record(store, layout.tracking_run(config, first), TrackingRun)
    assert record is not None
    assert record.run_id == found.run(first.name).info.run_id


def test_a_training_that_a_signal_stopped_did_not_fail(shared: Shared) -> None:
    config, store, spec = shared.config, shared.store, shared.config.spec("mini-XL/2")
    with pytest.raises(StoppedError), open_tracker(config, store, spec):
        raise StoppedError("stopped by a signal at step 10", signal.SIGTERM)
    found = _settled(config, store, **{"digits": "KILLED", spec.name: "KILLED"})
    assert "error" not in found.run(spec.name).data.tags


def test_a_run_whose_machine_is_gone_does_not_stay_running(shared: Shared) -> None:
    _until(lambda: _stand(shared.store, {"silent": "KILLED"}), "the silent run is ended")
    assert Found(_uri(shared.store)).statuses["heard"] == "RUNNING"


def test_a_killed_training_is_marked_and_a_resumed_one_continues_its_run(shared: Shared) -> None:
    config, store, spec = shared.config, shared.store, shared.config.spec("mini-S/4")
    training = _train(store, spec, 10, 100, then=300, wait=False)
    _until(lambda: _stand(store, {"digits": "RUNNING", spec.name: "RUNNING"}), "the runs are there")
    training.kill()
    before = _settled(config, store, **{"digits": "KILLED", spec.name: "KILLED"})
    assert before.history(spec.name, "loss") == _losses(*range(10, 110, 10))
    training.communicate()
    _train(store, spec, 60, 150)
    after = _settled(config, store, **{"digits": "FINISHED", spec.name: "FINISHED"})
    assert after.run(spec.name).info.run_id == before.run(spec.name).info.run_id
    assert after.history(spec.name, "loss") == _losses(*range(10, 160, 10))
    assert len(after.history(spec.name, "images_per_second")) == 15


def test_a_run_deleted_on_the_server_is_made_anew_with_all_its_points(shared: Shared) -> None:
    config, store, spec = shared.config, shared.store, shared.config.spec("mini-B/4")
    client: Any = MlflowClient(tracking_uri=_uri(store))
    with open_tracker(config, store, spec) as tracker:
        tracker.metrics(10, {"loss": 1 / 10})
        _until(lambda: tracker.run_id, "the run is there")
        first = tracker.run_id
        client.delete_run(first)
        tracker.metrics(20, {"loss": 1 / 20})
        _until(lambda: tracker.run_id not in (None, first), "another run is there")
        second = tracker.run_id
        client.delete_run(second)
    found = _settled(config, store, **{spec.name: "FINISHED"})
    assert found.run(spec.name).info.run_id not in (first, second)
    assert found.history(spec.name, "loss") == _losses(10, 20)


def test_points_that_only_the_server_kept_are_taken_back_and_not_doubled(shared: Shared, root: Path) -> None:
    config, store, spec = shared.config, shared.store, shared.config.spec("mini-L/4")
    _train(store, spec, 10, 50)
    copy = run_folder(config, store, spec).journal.read_bytes()
    _train(store, spec, 60, 90)
    before = _settled(config, store, **{spec.name: "FINISHED"}).run(spec.name).info.run_id
    # Another machine: what it has of the journal is older, and of the shipping it knows nothing.
    config, store = study_file.load(STUDY, [VARIANTS, f"tracking.uri={_uri(store)}"]), open_store(root)
    journal = run_folder(config, store, spec).journal
    journal.parent.mkdir(parents=True)
    journal.write_bytes(copy)
    with open_tracker(config, store, spec) as tracker:
        steps = [point.step for point in read_points(config, store, spec) if point.key == "loss"]
        assert steps == list(range(10, 60, 10))
        _until(lambda: tracker.run_id, "the server has been reached")
        _until(lambda: len(read_points(config, store, spec)) == 2 * 9, "the points are back")
        for step in range(60, 120, 10):
            tracker.metrics(step, {"loss": 1 / step})
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    found = Found(_uri(shared.store))
    assert found.run(spec.name).info.run_id == before
    assert found.history(spec.name, "loss") == _losses(*range(10, 120, 10))


def test_the_pages_show_what_was_tracked(shared: Shared) -> None:
    base, _, page = shared.address.partition("/#")
    _until(lambda: _answers(f"{base}/health"), "the pages are served")
    found = Found(base)
    run = found.run(SHOWN).info
    assert page == view_page(run.experiment_id, "digits").removeprefix("/#")
    assert view_tag("digits") in found.client.get_experiment(run.experiment_id).tags
    assert found.history(SHOWN, "loss") == [(20, 0.5)]
    [png] = [path for path in found.files(SHOWN) if path.endswith(".png")]
    image = urlopen(f"{base}/get-artifact?run_id={run.run_id}&path={quote(png)}", timeout=60).read()
    assert Image.open(io.BytesIO(image)).size == (64, 32)


def test_make_ui_says_where_the_pages_are_once_they_are_and_leaves_no_server_behind(shared: Shared) -> None:
    with reserved_port() as port:
        pass
    root = shared.store.url.removeprefix("file://")
    command = [sys.executable, "-m", "dit.tracking.ui", "--root", root, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = next(word for line in process.stdout for word in line.split() if word.startswith("http://"))
    assert "viewStateShareKey=digits" in address
    health = f"{address.partition('/#')[0]}/health"
    assert _answers(health)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE_SECONDS) == 0
    _until(lambda: not _answers(health), "the server has gone")


def test_a_view_that_somebody_changed_stays_and_a_former_one_is_replaced(root: Path) -> None:
    config, store = study_file.load(STUDY, [VARIANTS, "tracking.experiment=viewed"]), open_store(root)
    with open_tracker(config, store, config.spec(SHOWN)) as tracker:
        tracker.metrics(20, {"loss": 0.5})
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    client: Any = MlflowClient(tracking_uri=_uri(store))
    experiment, name = client.get_experiment_by_name("viewed"), view_tag("digits")
    made = experiment.tags[name]
    assert config.evaluation.metric in resolve_target(config, store).metric
    changed = made.replace(f'"updatedAt": {experiment.creation_time}', f'"updatedAt": {experiment.creation_time + 1}')
    assert changed != made
    for before, after in ((changed, changed), (made.replace("Scaling", "Former"), made)):
        client.set_experiment_tag(experiment.experiment_id, name, before)
        Sink(resolve_target(config, store))
        assert client.get_experiment_by_name("viewed").tags[name] == after


def test_no_server_costs_no_point(shared: Shared, root: Path, port: int) -> None:
    gate = Gate(port, urlsplit(shared.address).port or 0)
    uri = f"http://127.0.0.1:{gate.port}"
    overrides = (f"tracking.uri={uri}", "tracking.experiment=outage")
    config, store = study_file.load(STUDY, [VARIANTS, *overrides]), open_store(root)
    spec = config.specs[0]
    _train(store, spec, 10, 50, *overrides)
    assert not flush(config, store, timeout=0.5)
    gate.open()
    with open_tracker(config, store, spec) as tracker:
        _until(lambda: tracker.run_id, "the server has been reached")
        tracker.metrics(60, {"loss": 1 / 60})
        tracker.image("samples", 60, _png(0))
        _until(lambda: len(Found(uri, "outage").history(spec.name, "loss")) == 6, "points arrive")
        gate.shut()
        tracker.metrics(70, {"loss": 1 / 70})
        tracker.artifact("report.html", b"<html>")
    assert [point.step for point in read_points(config, store, spec) if point.key == "loss"] == list(range(10, 80, 10))
    gate.open()
    reconcile(config, store)
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    expected = {"digits": "FINISHED", spec.name: "FINISHED"}
    _until(lambda: Found(uri, "outage").statuses == expected, f"runs stand at {expected}")
    found = Found(uri, "outage")
    assert found.history(spec.name, "loss") == _losses(*range(10, 80, 10))
    assert {"report.html"} < set(found.files(spec.name))
    gate.shut()
