"""What is done about a study's journals when no tracker is open: see that all is shipped, and no dead run lives on."""

from __future__ import annotations

from contextlib import suppress

from dit.errors import DitError
from dit.storage import Store
from dit.storage.base import local_errors
from dit.study.config import StudyConfig
from dit.study.variants import ModelSpec
from dit.tracking.lock_file import is_held
from dit.tracking.paths import run_folder, study_folder
from dit.tracking.shipper_process import complain, drain, start_shipper
from dit.tracking.state import read_shipper, shipper_lock, waiting
from dit.tracking.store_copy import Mirror
from dit.tracking.target import resolve_target
from dit.tracking.tracker import open_tracker
from dit.tracking.writer_session import close_dead_writers


def reconcile(config: StudyConfig, store: Store, *, ask_server: bool = False) -> None:
    """Have runs of killed processes set KILLED, and lines that wait shipped; returns at once.

    Where nothing is left to do this costs a few reads of small files. `ask_server` also ends runs of this study
    whose process died on another machine and whose heartbeat stopped.
    """
    study = study_folder(config, store)
    with local_errors(study.path):
        for run in study.runs():
            close_dead_writers(run)
        if config.tracking.kind == "none":
            return
        target = resolve_target(config, store)
        if ask_server or waiting(study, target):
            study.state.mkdir(parents=True, exist_ok=True)
            start_shipper(study, target)


def collect(config: StudyConfig, store: Store) -> None:
    """Take over the journals of all variants from the store, and ship from here what their machines did not.

    For a study whose variants are complete: their runs end FINISHED. A pod that ended while the tracking server was
    away, or busy, left its last points in the store alone.
    """
    for spec in config.specs if config.tracking.kind != "none" else ():
        if Mirror(store, run_folder(config, store, spec)).is_needed:
            with open_tracker(config, store, spec):
                pass


def end_failed(config: StudyConfig, store: Store, spec: ModelSpec, error: DitError) -> None:
    """End a variant's run FAILED with an error's line, for machines that are gone, and ship what they did not.

    Their journal comes from the store; where it has none they never began to log, and nothing is done. Waits for the
    server within bounds; raises StoreError where the disk or the store fails.
    """
    if config.tracking.kind == "none" or not Mirror(store, run_folder(config, store, spec)).fetch():
        return
    with suppress(type(error)), open_tracker(config, store, spec):
        raise error
    flush(config, store)


def flush(config: StudyConfig, store: Store, timeout: float = 30.0) -> bool:
    """Wait until all that was logged on this machine has arrived; False, and one line, when it has not in time.

    The shipper, which otherwise waits a while for the next stage, ends.
    """
    reconcile(config, store)
    if config.tracking.kind == "none":
        return True
    study, target = study_folder(config, store), resolve_target(config, store)
    with local_errors(study.path):
        if not waiting(study, target) and not is_held(shipper_lock(study, target)):
            return True
        left = drain(study, target, timeout)
        if left:
            state = read_shipper(study, target)
            complain(study, target, (state and state.error) or f"nothing arrived within {timeout:g} s")
    return left == 0
