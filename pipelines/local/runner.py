"""`dit study`: runs the pipeline under kfp.local, several runs at a time.

run("configs/digits.yaml", root="runs", overrides=["train.steps=400"])
"""

from __future__ import annotations

import importlib
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dit.console import say
from dit.errors import FinalError, StoreError, UnhealthyError
from dit.health.summary import headline, readings, stopped_by
from dit.report.tables import address, show_results
from dit.results.stages import REPORT, STAGES, VARIANT_STAGES, Work, variant_steps
from dit.results.state import is_complete, study_is_complete, unfinished
from dit.storage import Store, cache_dir, open_store
from dit.storage.base import local_errors
from dit.storage.file import FileStore
from dit.study import layout, study_file
from dit.study.config import StudyConfig
from dit.study.runs import Run
from dit.tracking import flush, reconcile, start_shipping
from pipelines.local.display import StudyLog, open_log
from pipelines.local.parallelism import available_cores, has_gpu, share
from pipelines.local.time_left import StudyClock, expected_seconds, steps_before
from pipelines.local.workers import WorkerError, WorkerPool, WorkItem
from pipelines.step import submitted
from pipelines.step.parent_watch import ChildLifeline


def run(study: Path | str, root: str, overrides: list[str], image: str | None = None) -> None:
    """Run the stages of a study that are not complete, then print its table, its verdict and what to look at next.

    With an image, steps run in containers. An interrupt ends the running steps; the next run resumes from their last
    checkpoints.

    A run that a health check stops ends there. The others go on, and the report is made without it.

    Raises UnhealthyError at the end when a check stopped a run.
    Raises DitError with the step's own message when a step fails for another reason.
    """
    config = study_file.load(study, overrides)
    store = open_store(root)
    work = Work(config, store)
    if study_is_complete(work):
        _bring_up_to_date(work)
    else:
        store.check_writable()
        importlib.import_module("dit.stages.evaluate").check_files(config, store)
        _run_pipeline(config, store, image)
        flush(config, store)
    show_results(config, store)
    if unfinished(work):
        raise UnhealthyError(headline(readings(config, store)))


def _bring_up_to_date(work: Work) -> None:
    """Report and tracking of a complete study; where its store is read-only, the study can still be shown."""
    try:
        importlib.import_module("dit.stages.report").run(work.config, work.store)
        flush(work.config, work.store)
    except StoreError as error:
        if not is_complete(REPORT, work):
            raise
        say(f"tracking: {error}")


def _run_pipeline(config: StudyConfig, store: Store, image: str | None) -> None:
    work = Work(config, store)
    log_path, left = _log_path(config, store), unfinished(work)
    on_gpu, kind = has_gpu(), "variants" if len(config.train_seeds) == 1 else "runs"
    machine = share(config.fit, len(left), available_cores(), on_gpu)
    say(
        f"{config.study}: {len(left)} of {len(config.runs)} {kind} to do, {machine.workers} at a time;"
        f" results in {address(store, '')}, log in {log_path}"
    )
    shares = _shares(left, machine.workers, one_each=on_gpu or image is not None)
    expected = expected_seconds(work, left, len(shares), on_gpu)
    clock = StudyClock(expected, machine.workers, steps_before(config))
    total = len(STAGES) - len(VARIANT_STAGES) + len(list(variant_steps(config))) * len(left)
    with (
        open_log(log_path) as log,
        _scratch() as scratch,
        StudyLog(log, total, clock) as shown,
        ChildLifeline() as lifeline,
        _interrupts(lifeline) as caught,
    ):
        submitted.write(config, store)
        text = config.to_yaml()
        start_shipping(config, store)
        try:
            with WorkerPool(machine.workers, Path(scratch), shown.take, lifeline.pull) as pool:
                pool.run([WorkItem(text, store.url, "prepare", image=image)])
                items = [WorkItem(text, store.url, part, machine.threads, image) for part in shares]
                pool.run(items, lambda worker, _: not caught and _is_sick(config, store, shown, worker))
                if len(unfinished(work)) < len(config.runs):
                    pool.run([WorkItem(text, store.url, "report", image=image)])
            if caught:
                _end_by(caught[0])
        except WorkerError as error:
            if caught:
                _end_by(caught[0])
            raise shown.failure(error.worker, str(log_path), error.exit_code) from None
        finally:
            # A killed step could not set the status of its MLflow run.
            reconcile(config, store)


def _shares(left: Sequence[Run], workers: int, *, one_each: bool) -> list[str]:
    """The parts of the pipeline that do these runs: all runs for each worker, whose process takes the next one left.

    Starting a process and importing torch costs a CPU 4 s, which is as long as a small model trains. On a GPU and in
    containers each run has a process of its own.
    """
    names = [run.slug for run in left]
    return names if one_each else [",".join(names)] * workers


def _is_sick(config: StudyConfig, store: Store, shown: StudyLog, worker: int) -> bool:
    """Whether a health check stopped the run of a worker's last step, which does not concern the others."""
    if shown.exit_code(worker) != FinalError.exit_code:
        return False
    if stopped_by(config, store, config.run(shown.failed_run(worker))) is None:
        return False
    shown.give_up(worker)
    return True


def _end_by(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _log_path(config: StudyConfig, store: Store) -> Path:
    path = (store.root if isinstance(store, FileStore) else cache_dir()) / layout.pipeline_log(config)
    with local_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _scratch() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="dit-study-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StoreError(f"no folder for temporary files: {error.strerror}; free space, or set TMPDIR") from error


@contextmanager
def _interrupts(lifeline: ChildLifeline) -> Iterator[list[int]]:
    """While the body runs, SIGINT and SIGTERM end the steps, not this process; yields the signals received."""
    caught: list[int] = []

    def pull(number: int, _: FrameType | None) -> None:
        caught.append(number)
        lifeline.pull()

    before = {number: signal.signal(number, pull) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
