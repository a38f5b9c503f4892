"""MLflow's own pages on what was tracked below a root: `dit ui`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from urllib.parse import urlsplit

from dit.console import say
from dit.errors import InputError
from dit.storage import Store, open_store, read_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.tracking.mlflow_view import experiment_page, view_page
from dit.tracking.paths import StudyFolder, local_root, tracked_studies
from dit.tracking.shipper_process import complain, drain
from dit.tracking.state import TrackingRun, read_shipper, read_target, waiting
from dit.tracking.target import SQLITE, Target
from dit.tracking.writer_session import close_dead_writers

DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks a server of this machine, to which no proxy leads, whatever `http_proxy` says."""

_PORTS_TRIED = 20
_DRAIN_SECONDS = 30.0
_POLL_SECONDS = 0.2
# Of MLflow and of what it stands on only what went wrong is of interest here.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}
_QUIET_OPTIONS = ["--uvicorn-opts", "--log-level warning"]


def server_command(root: str, host: str, port: int) -> tuple[str, list[str]]:
    """The address that will show the results below a root, and the command that serves it.

    What waits to be shipped is shipped first. Raises InputError where nothing was tracked, or to a server only.
    """
    studies = {study: read_target(study) for study in tracked_studies(local_root(open_store(root)))}
    if not studies:
        raise InputError(
            f"{root}: nothing was tracked below it; run a study first, such as dit study configs/digits.yaml"
        )
    for study, target in studies.items():
        _catch_up(study, target)
    local = [(study, target) for study, target in studies.items() if target.uri.startswith(SQLITE)]
    if not local:
        study, target = next(iter(studies.items()))
        raise InputError(f"{root}: its runs are on a server; open {target.address.rstrip('/')}{_page(study, target)}")
    study, target = local[0]
    port = free_port(host, port)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", target.uri]
    # Unsaid, this too is a line of output.
    command += ["--registry-store-uri", target.uri]
    artifacts = (target.artifacts or "").rpartition("/")[0]
    command += ["--artifacts-destination", artifacts, "--host", host, "--port", str(port), "--workers", "1"]
    return f"http://{host}:{port}{_page(study, target)}", [*command, *_QUIET_OPTIONS]


def view_on_server(config: StudyConfig, store: Store) -> str | None:
    """The address of a study's view on a server; None while it has none, or is tracked on a machine's own disk."""
    run = read_record(store, layout.tracking_run(config, None), TrackingRun)
    if run is None or not run.uri.startswith(("http://", "https://")):
        return None
    return run.uri.rstrip("/") + view_page(run.experiment_id, config.study)


def serve(address: str, command: list[str]) -> int:
    """Run the server, say its address when it answers, and end it with this process; the server's exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    # A group of its own: the server is several processes, and one that is signalled leaves the others behind.
    with subprocess.Popen(command, env=os.environ | _QUIET, start_new_session=True) as server:
        try:
            if _answers(server, address):
                say(f"MLflow shows the results at {address} (Ctrl-C ends it)")
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)


def free_port(host: str, first: int) -> int:
    """This port, or the next that nobody listens on; InputError where a number of them are taken."""
    for port in range(first, first + _PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise InputError(f"{host}: ports {first} to {first + _PORTS_TRIED - 1} are taken; give another --port")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _answers(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait for the server's first answer; False when it ends before."""
    health = f"http://{urlsplit(address).netloc}/health"
    while server.poll() is None:
        with suppress(OSError), DIRECTLY.open(health, timeout=5):
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _catch_up(study: StudyFolder, target: Target) -> None:
    for run in study.runs():
        close_dead_writers(run)
    left = waiting(study, target)
    if left and target.lacks_password:
        say(
            f"{target.study}: {left} lines wait for {target.address}, whose password is not kept here;"
            " they are shipped when the study runs"
        )
    elif left:
        say(f"{target.study}: shipping what waits to {target.address}")
        if drain(study, target, _DRAIN_SECONDS):
            state = read_shipper(study, target)
            complain(study, target, (state and state.error) or "did not answer")


def _page(study: StudyFolder, target: Target) -> str:
    """Where the study's view is, below the server's address; of a study without one, its experiment."""
    path = study.path / layout.TRACKING_RUN
    if not path.exists():
        return ""
    experiment = TrackingRun.from_json(path.read_bytes(), str(path)).experiment_id
    return view_page(experiment, target.study) if target.metric else experiment_page(experiment)
