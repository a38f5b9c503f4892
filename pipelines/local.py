"""The study on this machine: the pipeline under kfp.local's SubprocessRunner, and what it found, at the end."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType

from dit import layout, study_file
from dit.analysis.tables import address, show_results
from dit.config import StudyConfig
from dit.console import say, share_terminal
from dit.storage import Store, cache_dir, open_store
from dit.storage_file import FileStore
from dit.tracking import flush, reconcile
from pipelines import complete
from pipelines.leash import Leash
from pipelines.terminal import StepLog


def run(study: Path | str, root: str, overrides: list[str]) -> None:
    """Run what is not complete yet of a study, then print its table, its verdict and where to look next.

    A step that fails raises DitError with that step's own line; an interrupt ends the running step, which goes on
    from its last checkpoint the next time.
    """
    config = study_file.load(study, overrides)
    store = open_store(root)
    store.check_writable()
    if complete.study_complete(config, store):
        importlib.import_module("dit.stages.report").run(config, store)
    else:
        _run_pipeline(config, store)
    flush(config, store)
    show_results(config, store)


def _run_pipeline(config: StudyConfig, store: Store) -> None:
    log_path = _log_path(config, store)
    say(f"{config.study}: {len(config.specs)} variants, results in {address(store, '')}, log in {log_path}")
    from kfp import local

    from pipelines.study import build

    with (
        open(log_path, "w") as log,
        tempfile.TemporaryDirectory(prefix="dit-study-", ignore_cleanup_errors=True) as work,
        _environment(work),
        Leash() as leash,
        _interrupts(leash) as caught,
        warnings.catch_warnings(),
    ):
        # kfp warns of every image without "python" in its name.
        warnings.simplefilter("ignore")
        steps = StepLog(log, total=2 + 3 * len(config.specs))
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=work, workspace_root=f"{work}/workspace")
        try:
            with redirect_stdout(steps):
                build(config, store.url, one_by_one=True)()
            if caught:
                _end_by(caught[0])
        except RuntimeError:
            if caught:
                _end_by(caught[0])
            raise steps.failure(str(log_path)) from None
        finally:
            # A step that was killed could not end its own run.
            reconcile(config, store)


def _end_by(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _log_path(config: StudyConfig, store: Store) -> Path:
    path = (store.root if isinstance(store, FileStore) else cache_dir()) / layout.pipeline_log(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _environment(work: str) -> Iterator[None]:
    """What steps inherit: a folder for kfp's leftovers, and the terminal to draw progress on."""
    before = dict(os.environ)
    os.environ["TMPDIR"] = work
    share_terminal()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _interrupts(leash: Leash) -> Iterator[list[int]]:
    """While the body runs, let SIGINT and SIGTERM end the running step instead of this process; yields those seen."""
    caught: list[int] = []

    def pull(number: int, _: FrameType | None) -> None:
        caught.append(number)
        leash.pull()

    before = {number: signal.signal(number, pull) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
