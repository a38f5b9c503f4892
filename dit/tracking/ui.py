"""MLflow's own pages on what was tracked below a root: `python -m dit.tracking.ui --root runs`."""

from __future__ import annotations

import argparse
import os
import socket
import sys

from dit.console import say
from dit.errors import DitError, InputError
from dit.layout import TRACKING_RUN
from dit.storage import open_store
from dit.tracking.launch import complain, drain
from dit.tracking.places import StudyFolder, local_root, tracked_studies
from dit.tracking.state import TrackingRun, read_shipper, read_target, waiting
from dit.tracking.target import SQLITE, Target
from dit.tracking.writers import close_dead_writers

_PORTS_TRIED = 20
_DRAIN_SECONDS = 30.0


def server_command(root: str, host: str, port: int) -> tuple[str, list[str]]:
    """The address that will show the results below a root, and the command that serves it.

    What waits to be shipped is shipped first. Raises InputError where nothing was tracked, or to a server only.
    """
    studies = {study: read_target(study) for study in tracked_studies(local_root(open_store(root)))}
    if not studies:
        raise InputError(f"{root}: nothing was tracked below it; run a study first, such as make study")
    for study, target in studies.items():
        _catch_up(study, target)
    local = [(study, target) for study, target in studies.items() if target.uri.startswith(SQLITE)]
    if not local:
        raise InputError(f"{root}: its runs are on a server; open {next(iter(studies.values())).address}")
    study, target = local[0]
    port = _free_port(host, port)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", target.uri]
    artifacts = (target.artifacts or "").rpartition("/")[0]
    command += ["--artifacts-destination", artifacts, "--host", host, "--port", str(port)]
    return f"http://{host}:{port}{_page(study)}", [*command, "--workers", "1"]


def main(arguments: list[str] | None = None) -> None:
    """Become the server; it ends with Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m dit.tracking.ui", description=__doc__)
    parser.add_argument("--root", default=os.environ.get("DIT_ROOT", "runs"), help="store of all results")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=5000, help="port; the next free one where it is taken")
    given = parser.parse_args(arguments)
    try:
        address, command = server_command(given.root, given.host, given.port)
    except DitError as error:
        sys.stderr.write(f"dit: {error}\n")
        sys.exit(error.exit_code)
    say(f"MLflow will answer in a moment at {address} (Ctrl-C ends it)")
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    os.execve(command[0], command, os.environ | quiet)


def _catch_up(study: StudyFolder, target: Target) -> None:
    for run in study.runs():
        close_dead_writers(run)
    if waiting(study, target):
        say(f"{target.study}: shipping what waits to {target.address}")
        if drain(study, target, _DRAIN_SECONDS):
            state = read_shipper(study, target)
            complain(study, target, (state and state.error) or "did not answer")


def _page(study: StudyFolder) -> str:
    """Where the study's experiment is, below the server's address."""
    path = study.path / TRACKING_RUN
    if not path.exists():
        return ""
    return f"/#/experiments/{TrackingRun.from_json(path.read_bytes(), str(path)).experiment_id}"


def _free_port(host: str, first: int) -> int:
    for port in range(first, first + _PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise InputError(f"{host}: ports {first} to {first + _PORTS_TRIED - 1} are taken; give another --port")


if __name__ == "__main__":
    main()
