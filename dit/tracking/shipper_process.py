"""Starts the shipper and waits for it. Only the shipper's own process imports mlflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import dit
from dit.console import say
from dit.errors import StoreError
from dit.storage import Store
from dit.storage.base import local_errors
from dit.study.addresses import same_origin
from dit.study.config import StudyConfig
from dit.tracking.journal import read_header
from dit.tracking.lock_file import is_held
from dit.tracking.mlflow_database import damage, set_aside
from dit.tracking.paths import RunFolder, StudyFolder, study_folder
from dit.tracking.state import forget_lost_runs, read_state, shipper_status, waiting
from dit.tracking.target import URI_VARIABLE, Target, resolve_target
from dit.tracking.writer_session import close_dead_writers

TARGET_VARIABLE = "DIT_TRACKING_TARGET"
_SUPERVISE_SECONDS = 30.0
_COMPLAINT_SECONDS = 300.0
_POLL_SECONDS = 0.05
_CREDENTIALS = tuple(
    f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "CLIENT_CERT_PATH")
)
_CREDENTIALS_FILE = Path("~/.mlflow/credentials")
_START_SECONDS = 120.0
# A child needs a moment to take its lock, and Python warns about a child whose handle is lost while it runs.
_children: dict[Path, subprocess.Popen[bytes]] = {}


def start_shipping(config: StudyConfig, store: Store) -> None:
    """Start a shipper that serves all stages of a study on this machine until this process has ended."""
    if config.tracking.kind == "mlflow":
        _try_to_start(study_folder(config, store), resolve_target(config, store))


def reconcile(config: StudyConfig, store: Store) -> None:
    """Write KILLED for killed processes, and start a shipper if something waits; returns at once."""
    study = study_folder(config, store)
    with local_errors(study.path):
        for run in study.runs():
            close_dead_writers(run)
        if config.tracking.kind == "none":
            return
        target = resolve_target(config, store)
        forget_lost_runs(study, target)
        if waiting(study, target):
            start_shipper(study, target)


def flush(config: StudyConfig, store: Store, timeout: float = 30.0) -> bool:
    """Wait until everything logged on this machine has been shipped.

    False, and one line of output, if that takes longer than `timeout` seconds.
    """
    reconcile(config, store)
    if config.tracking.kind == "none":
        return True
    study, target = study_folder(config, store), resolve_target(config, store)
    with local_errors(study.path):
        return deliver(study, target, timeout)


class Shipping:
    """The shipper as a tracker uses it: start it, keep it running, and wait for it at the end."""

    def __init__(self, study: StudyFolder, run: RunFolder, target: Target) -> None:
        self._study, self._run, self._target = study, run, target
        self._checked = time.monotonic()
        self._next_complaint, self._pause = 0.0, _COMPLAINT_SECONDS
        _try_to_start(study, target)

    def run_id(self) -> str | None:
        """Id of this journal's MLflow run; None before it exists."""
        header, state = read_header(self._run.journal), read_state(self._study, self._target)
        shipped = state.journals.get(header.values["id"]) if header else None
        return shipped.run_id if shipped else None

    def keep_alive(self) -> None:
        """Every 30 seconds, start a shipper if none runs, and print that it cannot ship.

        That is printed again after 5 minutes, then more rarely.
        """
        if time.monotonic() - self._checked >= _SUPERVISE_SECONDS:
            self._checked = time.monotonic()
            _try_to_start(self._study, self._target)
            self._complain()

    def wait_for_delivery(self, seconds: float, *, start: bool) -> None:
        """Wait until this run has been shipped; without `start`, only while the server is answering."""
        starter = partial(start_shipper, self._study, self._target) if start else None
        try:
            if _wait(self._study, self._target, self._run, seconds, starter):
                self._complain()
        except StoreError as error:
            say(f"tracking: {error}")

    def _complain(self) -> None:
        status = shipper_status(self._study, self._target)
        if status and status.error and time.monotonic() >= self._next_complaint:
            self._next_complaint, self._pause = time.monotonic() + self._pause, min(2 * self._pause, 3600.0)
            _complain(self._study, self._target, status.error)


def start_shipper(study: StudyFolder, target: Target, *, stay: bool = True) -> None:
    """Start a shipper as a child of this process, unless one serves this study already.

    It ends soon after this process has ended, or with `stay=False` as soon as nothing is left to ship.

    Raises StoreError if it cannot be started.
    """
    child = _children.get(study.lock)
    if is_held(study.lock) or (child and child.poll() is None):
        return
    scratch = study.state / "tmp"
    mend(target)
    forget_lost_runs(study, target)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        if target.database and not target.store.startswith("file:") and not study.log.exists():
            say(
                f"tracking: no server is set (tracking.uri or MLFLOW_TRACKING_URI); runs go to {target.uri}"
                " on this machine, where `make ui` shows them"
            )
        with open(study.log, "ab") as output:
            _children[study.lock] = subprocess.Popen(
                [sys.executable, "-m", "dit.tracking.shipper", str(study.path), str(os.getpid() if stay else 0)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=study.path,
                env=_environment(target, scratch),
                # Ctrl-C ends this process; the shipper still sends how the run ended.
                start_new_session=True,
            )
    except OSError as error:
        raise StoreError(f"{study.log}: cannot start the shipper: {error.strerror}; run the step again") from error


def mend(target: Target) -> None:
    """Set a damaged database aside, if it is the store's own, so that it is filled again from the journals."""
    if target.database and (cause := damage(target.database)):
        if not target.is_own:
            raise StoreError(
                f"{target.database}: is damaged ({cause}); restore it, or remove it and run the step again"
            )
        aside = set_aside(target.database)
        say(
            f"tracking: {target.database} was damaged ({cause});"
            f" it is kept as {aside.name} and filled again from the journals"
        )


def _try_to_start(study: StudyFolder, target: Target) -> None:
    """As `start_shipper`, but a failure is only printed: the journal is still written, and a later stage ships it."""
    try:
        start_shipper(study, target)
    except StoreError as error:
        say(f"tracking: {error}")


def deliver(study: StudyFolder, target: Target, seconds: float, *, stay: bool = True) -> bool:
    """Ship everything of a study; False, and one line of output, if that takes longer than `seconds`."""
    if not _wait(study, target, None, seconds, partial(start_shipper, study, target, stay=stay)):
        return True
    status = shipper_status(study, target)
    _complain(study, target, (status and status.error) or f"not all has been sent within {seconds:g} s")
    return False


def _wait(
    study: StudyFolder, target: Target, run: RunFolder | None, seconds: float, start: Callable[[], None] | None
) -> int:
    """Wait until nothing is left to ship of the study, or of one run, at most `seconds`; what is left then.

    `start` is called while no shipper runs; the time counts from its first contact with the server, or its first
    failure, because starting takes long on a busy machine. Without, return as soon as the server is not answering.
    """
    deadline, is_counting = time.monotonic() + seconds + (_START_SECONDS if start else 0), not start
    while (left := waiting(study, target, run)) and time.monotonic() < deadline:
        if start:
            start()
        status = shipper_status(study, target)
        if not is_counting and status and (status.reached or status.error):
            deadline, is_counting = time.monotonic() + seconds, True
        if status and status.is_final:
            break
        if not start and not (status and status.reached and status.error is None):
            break
        time.sleep(_POLL_SECONDS)
    return left


def _complain(study: StudyFolder, target: Target, error: str) -> None:
    """Print in one line how many lines wait, why, and when they are shipped."""
    say(
        f"tracking: {target.address}: {error}; {waiting(study, target)} lines wait in {study.path}"
        " and are shipped as soon as it answers, by this command or a later one"
    )


def _environment(target: Target, scratch: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _unbound(target)}
    package_root = str(Path(dit.__file__).parents[1])
    search_path = os.environ.get("PYTHONPATH")
    return kept | {
        TARGET_VARIABLE: json.dumps(asdict(target)),
        "PYTHONPATH": f"{package_root}{os.pathsep}{search_path}" if search_path else package_root,
        # The starter's temporary folder may be removed before the shipper has ended.
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1",
    }


def _unbound(target: Target) -> tuple[str, ...]:
    """Variables with credentials that are meant for another server than the target.

    Raises StoreError when MLflow would send its credentials file there, which no variable can prevent.
    """
    named = os.environ.get(URI_VARIABLE) or ""
    if not target.uri.startswith(("http://", "https://")) or same_origin(named, target.uri):
        return ()
    remedy = f"{URI_VARIABLE} does not name that server; set it to {target.address} to send them"
    if _CREDENTIALS_FILE.expanduser().exists():
        raise StoreError(f"{_CREDENTIALS_FILE} would be sent to {target.address}, but {remedy}")
    held = tuple(name for name in _CREDENTIALS if os.environ.get(name))
    if held:
        say(f"tracking: {', '.join(held)}: not sent to {target.address}, because {remedy}")
    return held
