"""What is done for a study's journals outside a tracker: ship what waits, and end the runs of killed processes."""

from __future__ import annotations

from contextlib import suppress

from dit.errors import DitError
from dit.storage import Store
from dit.storage.base import local_errors
from dit.study.config import StudyConfig
from dit.study.variants import ModelSpec
from dit.tracking.paths import run_folder, study_folder
from dit.tracking.shipper_process import complain, start_shipper, try_to_start, wait_for_delivery
from dit.tracking.state import shipper_status, waiting
from dit.tracking.store_copy import StoreCopy
from dit.tracking.target import resolve_target
from dit.tracking.tracker import open_tracker
from dit.tracking.writer_session import close_dead_writers


def start_shipping(config: StudyConfig, store: Store) -> None:
    """Start a shipper that serves all stages of a study on this machine until this process has ended."""
    if config.tracking.kind == "mlflow":
        try_to_start(study_folder(config, store), resolve_target(config, store))


def reconcile(config: StudyConfig, store: Store) -> None:
    """Write KILLED for killed processes, and start a shipper if something waits; returns at once."""
    study = study_folder(config, store)
    with local_errors(study.path):
        for run in study.runs():
            close_dead_writers(run)
        if config.tracking.kind == "mlflow" and waiting(study, target := resolve_target(config, store)):
            start_shipper(study, target)


def collect(config: StudyConfig, store: Store) -> None:
    """Take over the journals of all variants from a remote store, and ship what their machines could not.

    For a study whose variants are complete: their runs end FINISHED.
    """
    for spec in config.specs if config.tracking.kind == "mlflow" else ():
        if StoreCopy(store, run_folder(config, store, spec)).is_needed:
            with open_tracker(config, store, spec):
                pass


def end_failed(config: StudyConfig, store: Store, spec: ModelSpec, error: DitError) -> None:
    """End a variant's run FAILED with this error, for machines that are gone, and ship what they could not.

    Does nothing if the store has no journal of it. Waits for the server for a bounded time.

    Raises StoreError when the disk or the store fails.
    """
    if config.tracking.kind == "none" or not StoreCopy(store, run_folder(config, store, spec)).fetch():
        return
    with suppress(type(error)), open_tracker(config, store, spec):
        raise error
    flush(config, store)


def flush(config: StudyConfig, store: Store, timeout: float = 30.0) -> bool:
    """Wait until everything logged on this machine has been shipped.

    False, and one line of output, if that takes longer than `timeout` seconds.
    """
    reconcile(config, store)
    if config.tracking.kind == "none":
        return True
    study, target = study_folder(config, store), resolve_target(config, store)
    with local_errors(study.path):
        left = wait_for_delivery(study, target, lambda: waiting(study, target), timeout, start=True)
        if left:
            status = shipper_status(study, target)
            complain(study, target, (status and status.error) or f"nothing arrived within {timeout:g} s")
    return left == 0
