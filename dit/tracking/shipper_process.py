"""Starting the shipper, and waiting for it. Knows no MLflow: only the shipper's own process pays for its import."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import dit
from dit.console import say
from dit.errors import StoreError
from dit.tracking.journal import read_header
from dit.tracking.lock_file import is_held
from dit.tracking.paths import RunFolder, StudyFolder
from dit.tracking.state import drain_mark, read_shipped, read_shipper, shipper_lock, waiting, waiting_in, write_target
from dit.tracking.target import Target

TARGET_VARIABLE = "DIT_TRACKING_TARGET"
_SUPERVISE_SECONDS = 30.0
_POLL_SECONDS = 0.05
_START_SECONDS = 120.0
_LOG_BYTES = 1 << 20
# By lock and by the folder's identity, which changes when a study is removed and begun anew. A child takes a moment to
# take its lock, and one that nobody waits for would be reported as a leak when its handle is collected.
_children: dict[tuple[Path, int], subprocess.Popen[bytes]] = {}


class Shipping:
    """What a tracker has to do with the shipper: have one, and wait for it at the end."""

    def __init__(self, study: StudyFolder, run: RunFolder, target: Target) -> None:
        self._study, self._run, self._target = study, run, target
        self._checked = time.monotonic()
        self._complained = False
        self._cannot_start = ""
        self._start()

    def run_id(self) -> str | None:
        """The MLflow run that this journal is shipped to, once there is one."""
        header = read_header(self._run.journal)
        return read_shipped(self._run, header.values["id"], self._target).run_id if header else None

    def keep_alive(self) -> None:
        """Now and then, replace a shipper that died and say, once, that it cannot ship."""
        if time.monotonic() - self._checked < _SUPERVISE_SECONDS:
            return
        self._checked = time.monotonic()
        self._start()
        self._complain()

    def wait(self, seconds: float, *, hopeful: bool) -> None:
        """Wait until everything of this run has arrived; unless `hopeful`, only while that is about to happen.

        Whoever is hopeful gives the shipper time to start, too, as `drain` does.
        """
        deadline, has_started = time.monotonic() + seconds + (_START_SECONDS if hopeful else 0), not hopeful
        while waiting_in(self._run, self._target, live=self._run.is_live()):
            if hopeful:
                # The one at work may have been about to go: its last customer wanted its end.
                self._start()
            state = read_shipper(self._study, self._target)
            if not has_started and state and (state.reached or state.error):
                deadline, has_started = time.monotonic() + seconds, True
            on_its_way = state is not None and state.reached and state.error is None
            if time.monotonic() >= deadline or not (hopeful or on_its_way):
                self._complain()
                return
            time.sleep(_POLL_SECONDS)

    def _start(self) -> None:
        try:
            start_shipper(self._study, self._target)
        except StoreError as error:
            # The journal is written all the same, and a later stage ships it.
            if str(error) != self._cannot_start:
                say(f"tracking: {error}")
            self._cannot_start = str(error)

    def _complain(self) -> None:
        state = read_shipper(self._study, self._target)
        if state and state.error and not self._complained:
            self._complained = True
            complain(self._study, self._target, state.error)


def start_shipper(study: StudyFolder, target: Target) -> None:
    """See to it that a shipper serves this study. Raises StoreError when none can be started.

    It outlives this process and what this process is part of: the next stage finds it running, and a killed one is
    still told to the server.
    """
    for key in [key for key, child in _children.items() if child.poll() is not None]:
        del _children[key]
    lock, scratch = shipper_lock(study, target), study.state / "tmp"
    if is_held(lock):
        return
    log = study.state / "shipper.log"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        started = lock, study.state.stat().st_ino
        if started in _children:
            return
        write_target(study, target)
        with open(log, "ab") as output:
            if output.tell() > _LOG_BYTES:
                output.truncate(0)
            _children[started] = subprocess.Popen(
                [sys.executable, "-m", "dit.tracking.shipper", str(study.path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Whatever folder this process stands in may be gone before the shipper is.
                cwd=study.path,
                env=_environment(target, scratch),
                start_new_session=True,
            )
    except OSError as error:
        raise StoreError(f"{log}: cannot start the tracking process: {error.strerror}; run the step again") from error


def drain(study: StudyFolder, target: Target, timeout: float) -> int:
    """Let the shipper ship everything and go; how much still waits when it has, or when the time is over.

    The `timeout` in seconds counts from the shipper's first contact with the server, or failure to get any: to start
    takes it a while, the longer the busier the machine is.
    """
    left = waiting(study, target)
    if not left and not is_held(shipper_lock(study, target)):
        return 0
    drain_mark(study, target).touch()
    deadline, has_started = time.monotonic() + timeout + _START_SECONDS, False
    while left and time.monotonic() < deadline:
        start_shipper(study, target)
        drain_mark(study, target).touch()
        time.sleep(_POLL_SECONDS)
        state = read_shipper(study, target)
        if not has_started and state and (state.reached or state.error):
            deadline, has_started = time.monotonic() + timeout, True
        left = waiting(study, target)
    return left


def complain(study: StudyFolder, target: Target, error: str) -> None:
    """Say in one line that points wait, where, and what becomes of them."""
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
        # An orchestrator's own temporary folder goes with it.
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1",
    }
