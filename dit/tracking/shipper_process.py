"""Starting the shipper, and waiting for it. Knows no MLflow: only the shipper's own process imports it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dit
from dit.console import say
from dit.errors import StoreError
from dit.tracking.journal import read_header
from dit.tracking.lock_file import is_held
from dit.tracking.paths import RunFolder, StudyFolder
from dit.tracking.state import read_state, shipper_status, waiting, waiting_in
from dit.tracking.target import Target

TARGET_VARIABLE = "DIT_TRACKING_TARGET"
_SUPERVISE_SECONDS = 30.0
_POLL_SECONDS = 0.05
_START_SECONDS = 120.0
_LOG_BYTES = 1 << 20
# By lock and by the folder's inode, which changes when a study is removed and started again. A child needs a moment to
# take its lock, and Python warns about a child whose handle is lost while it runs.
_children: dict[tuple[Path, int], subprocess.Popen[bytes]] = {}


class Shipping:
    """The shipper as a tracker uses it: start it, keep it running, and wait for it at the end."""

    def __init__(self, study: StudyFolder, run: RunFolder, target: Target) -> None:
        self._study, self._run, self._target = study, run, target
        self._checked = time.monotonic()
        self._complained = False
        try_to_start(study, target)

    def run_id(self) -> str | None:
        """The MLflow run of this journal, once there is one."""
        header, state = read_header(self._run.journal), read_state(self._study, self._target)
        shipped = state.journals.get(header.values["id"]) if header else None
        return shipped.run_id if shipped else None

    def keep_alive(self) -> None:
        """Every 30 seconds, start a shipper if none runs, and print once that it cannot ship."""
        if time.monotonic() - self._checked >= _SUPERVISE_SECONDS:
            self._checked = time.monotonic()
            try_to_start(self._study, self._target)
            self._complain()

    def wait_for_delivery(self, seconds: float, *, start: bool) -> None:
        """Wait until this run has been shipped. See `wait_for_delivery` for `start`."""

        def left() -> int:
            return waiting_in(self._run, read_state(self._study, self._target), live=self._run.is_live())

        try:
            if wait_for_delivery(self._study, self._target, left, seconds, start=start):
                self._complain()
        except StoreError as error:
            say(f"tracking: {error}")

    def _complain(self) -> None:
        status = shipper_status(self._study, self._target)
        if status and status.error and not self._complained:
            self._complained = True
            complain(self._study, self._target, status.error)


def start_shipper(study: StudyFolder, target: Target, *, stay: bool = True) -> None:
    """Start a shipper as a child of this process, unless one serves this study already.

    It ends soon after this process has ended, or with `stay=False` as soon as nothing is left to ship.

    Raises StoreError if it cannot be started.
    """
    for key in [key for key, child in _children.items() if child.poll() is not None]:
        del _children[key]
    if is_held(study.lock):
        return
    scratch = study.state / "tmp"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        child = study.lock, study.state.stat().st_ino
        if child in _children:
            return
        if target.is_on_this_machine_only and not study.log.exists():
            say(
                f"tracking: no server is set (tracking.uri or MLFLOW_TRACKING_URI); runs go to {target.uri}"
                " on this machine, where `make ui` shows them"
            )
        with open(study.log, "ab") as output:
            if output.tell() > _LOG_BYTES:
                output.truncate(0)
            _children[child] = subprocess.Popen(
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


def try_to_start(study: StudyFolder, target: Target) -> None:
    """As `start_shipper`, but only print a failure: the journal is written all the same, and a later stage ships it."""
    try:
        start_shipper(study, target)
    except StoreError as error:
        say(f"tracking: {error}")


def wait_for_delivery(
    study: StudyFolder, target: Target, left: Callable[[], int], seconds: float, *, start: bool, stay: bool = True
) -> int:
    """Wait until nothing is left to ship, at most `seconds`; what is left then.

    With `start`, start a shipper if none runs; the time counts from its first contact with the server, or its first
    failure, because starting takes long on a busy machine. Without, return as soon as the server is not answering.
    """
    deadline, is_counting = time.monotonic() + seconds + (_START_SECONDS if start else 0), not start
    while (count := left()) and time.monotonic() < deadline:
        if start:
            start_shipper(study, target, stay=stay)
        status = shipper_status(study, target)
        if not is_counting and status and (status.reached or status.error):
            deadline, is_counting = time.monotonic() + seconds, True
        if not start and not (status and status.reached and status.error is None):
            break
        time.sleep(_POLL_SECONDS)
    return count


def complain(study: StudyFolder, target: Target, error: str) -> None:
    """Print in one line how many lines wait, why, and when they are shipped."""
    say(
        f"tracking: {target.address}: {error}; {waiting(study, target)} lines wait in {study.path}"
        " and are shipped as soon as it answers, by this command or a later one"
    )


def _environment(target: Target, scratch: Path) -> dict[str, str]:
    package_root = str(Path(dit.__file__).parents[1])
    search_path = os.environ.get("PYTHONPATH")
    return os.environ | {
        TARGET_VARIABLE: target.to_json(),
        "PYTHONPATH": f"{package_root}{os.pathsep}{search_path}" if search_path else package_root,
        # The starter's temporary folder may be removed before the shipper has ended.
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1",
    }
