"""MLflow's pages for all studies below a root: `dit ui`."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from dit.console import say
from dit.errors import InputError, StoreError
from dit.storage import Store, open_store, read_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.tracking.mlflow_database import experiment_id
from dit.tracking.mlflow_view import experiment_page, view_page
from dit.tracking.paths import JOURNALS, StudyFolder, is_mirrored, local_root, tracked_studies
from dit.tracking.shipper_process import deliver, mend
from dit.tracking.state import TrackingRun, forget_lost_runs, read_state, ships_elsewhere, waiting
from dit.tracking.store_copy import fetch_journals
from dit.tracking.target import ARTIFACTS, DATABASE, Target, database_below, sqlite_uri
from dit.tracking.writer_session import close_dead_writers

DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses on this machine without a proxy, whatever `http_proxy` is."""

_PORTS_TRIED = 20
_LAST_PORT = 65535
_USER = "dit"
_FILL_SECONDS = 60.0
_POLL_SECONDS = 0.2
# Of MLflow and its libraries, show errors only.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}
_QUIET_OPTIONS = ["--uvicorn-opts", "--log-level warning"]


def server_command(root: str, host: str, port: int) -> tuple[str, list[str]]:
    """The address of the results below a root, and the command that serves it.

    The database below the root is first filled from the journals, also from journals of other machines.

    Raises InputError if there are no journals.
    """
    port = free_port(host, port)
    store = open_store(root)
    fetch_journals(store)
    folder = local_root(store)
    refuse_links(folder)
    studies = tracked_studies(folder)
    if not studies:
        raise InputError(
            f"{root}: no tracked study is below it; run one first, for example `dit study configs/digits.yaml`"
        )
    views = []
    for study in studies:
        server = _run_on_server(store, study.path.relative_to(folder).as_posix())
        records = server is None and not (is_mirrored(store) and store.url.startswith("file:"))
        target = database_below(folder, store, study, records_runs=records)
        # Before the first shipper starts, because a shipper creates a missing database.
        mend(target)
        forget_lost_runs(study, target)
        views.append((study, target, server.uri if server else "another database"))
    for view in views:
        _fill(*view)
    target = views[0][1]
    # MLflow prints a line if the registry's address is missing.
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", target.uri]
    command += ["--registry-store-uri", target.uri, "--artifacts-destination", (folder / ARTIFACTS).as_uri()]
    command += ["--host", host, "--port", str(port), "--workers", "1", *_QUIET_OPTIONS]
    return f"http://{host}:{port}{_page(target)}", command


def view_on_server(config: StudyConfig, store: Store) -> str | None:
    """The address of a study's view on a server; None if it has none or is tracked to a local database."""
    run = _run_on_server(store, layout.study(config))
    return run.uri.rstrip("/") + view_page(run.experiment_id, config.study) if run else None


def serve(address: str, command: list[str]) -> int:
    """Run the server, print its address and a password when it answers, and end it with this process.

    Returns the server's exit code. Without a login, another user of the machine could read this user's files through
    the server.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    password = secrets.token_urlsafe(12)
    with TemporaryDirectory(prefix="dit-ui-") as folder:
        login = _login(Path(folder), password)
        # The server is several processes: a signal to their group ends all of them.
        with subprocess.Popen(
            [*command, "--app-name", "basic-auth"], env=os.environ | _QUIET | login, start_new_session=True
        ) as server:
            try:
                if _answers(server, address):
                    say(f"MLflow shows the results at {address} to user {_USER}, password {password} (Ctrl-C ends it)")
                return server.wait()
            except KeyboardInterrupt:
                return 0
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGTERM)


def refuse_links(folder: Path) -> None:
    """Look through what tracking writes to below a root.

    Raises InputError for a link that leads out of the root: with somebody else's results, it would let him choose the
    files of this user that are written to. Also for a pipe or a device, and for a folder in place of a journal.
    """
    inside = folder.resolve()
    places = [folder / DATABASE, folder / ARTIFACTS, folder / layout.STUDIES]
    for top in places:
        for path in (top, *(Path(at, name) for at, folders, files in os.walk(top) for name in (*folders, *files))):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise InputError(f"{path}: is a link that leads out of {folder}; replace it by what it leads to")
            if path.exists() and not (path.is_file() or (path.is_dir() and not path.match(JOURNALS))):
                raise InputError(f"{path}: is not a file; remove it")


def _login(folder: Path, password: str) -> dict[str, str]:
    """Settings of MLflow's own login, in a folder of this user and in variables, which other users cannot read."""
    settings = folder / "login.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {sqlite_uri(folder / 'login.db')}\n"
        f"admin_username = {_USER}\nauth_cache_ttl_seconds = 3600\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
    }


def free_port(host: str, first: int) -> int:
    """This port, or the next one that is free.

    Raises InputError for an address that this machine does not have, and if all the ports tried are taken.
    """
    if not 0 < first <= _LAST_PORT:
        raise InputError(f"--port {first}: must be from 1 to {_LAST_PORT}, such as --port 5000")
    last = min(first + _PORTS_TRIED - 1, _LAST_PORT)
    for port in range(first, last + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise InputError(
                        f"--host {host}: {error.strerror or error}; give an address of this machine"
                    ) from error
                continue
            return port
    raise InputError(f"{host}: ports {first} to {last} are taken; give another --port")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _answers(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait for the server's first answer; False if it ends before that."""
    health = f"http://{urlsplit(address).netloc}/health"
    while server.poll() is None:
        with suppress(OSError), DIRECTLY.open(health, timeout=5):
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _fill(study: StudyFolder, target: Target, elsewhere: str) -> None:
    for run in study.runs():
        close_dead_writers(run)
    if ships_elsewhere(study, target):
        say(f"{target.study}: is running and tracked to {elsewhere}; open that server instead")
    elif waiting(study, target):
        say(f"{target.study}: filling {target.database} from the journals")
        if not deliver(study, target, _FILL_SECONDS, stay=False) and read_state(study, target).is_final:
            raise StoreError(f"{target.database}: cannot be filled: {read_state(study, target).error}")


def _run_on_server(store: Store, study: str) -> TrackingRun | None:
    """The parent run of the study with this key; None if it is in a local database."""
    run = read_record(store, f"{study}/{layout.TRACKING_RUN}", TrackingRun)
    return run if run and run.uri.startswith(("http://", "https://")) else None


def _page(target: Target) -> str:
    """The study's view below the server's address; the experiment for a study without a view."""
    experiment = experiment_id(target.database, target.experiment) if target.database else None
    if experiment is None:
        return ""
    return view_page(experiment, target.study) if target.metric else experiment_page(experiment)
