"""The tracker that stages log to. One call appends one line to the journal; another process ships it.

Nothing here contacts a tracking server or imports mlflow, so the server cannot slow training down.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from dit.errors import DitError, StoppedError, StoreError, one_line
from dit.storage import Store
from dit.storage.base import local_errors, place_file
from dit.study.config import StudyConfig
from dit.study.runs import Run
from dit.tracking.journal import (
    Entry,
    Journal,
    Kind,
    Point,
    header_of,
    missing,
    open_journal,
    parse,
    points,
    read_entries,
)
from dit.tracking.lock_file import LockFile
from dit.tracking.paths import RunFolder, run_folder, study_folder
from dit.tracking.shipper_process import Shipping, flush
from dit.tracking.store_copy import StoreCopy
from dit.tracking.target import logged_facts, resolve_target, study_facts
from dit.tracking.writer_session import Status, close_dead_writers, status_entry

_CLOSE_SECONDS = 20.0
_SYNC_SECONDS = 60.0
_ERROR_LENGTH = 500


class _Session(NamedTuple):
    """The files and the shipper of an open tracker."""

    run: RunFolder
    writer: LockFile
    journal: Journal
    copy: StoreCopy
    shipping: Shipping | None


class Tracker:
    """Logs to one run, or nowhere. Safe to call from several threads.

    Metric and step identify a point, and its first value is kept: points that a resumed training computes again are not
    logged again. A metric that depends on a protocol, such as a number of samples, must have the protocol in its name.

    Every method raises StoreError when the disk fails.
    """

    def __init__(self, session: _Session | None = None) -> None:
        self._session = session
        self._lock = threading.Lock()
        # Content of the journal: (kind, name, step) -> value, or the hash of a file.
        self._logged: dict[tuple[Kind, str, int | None], object] = {}
        self._read_until = 0

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None until the server has been reached."""
        return self._session.shipping.run_id() if self._session and self._session.shipping else None

    def params(self, values: Mapping[str, object]) -> None:
        """Log the run's parameters. MLflow keeps the first value, and a later one as a tag."""
        self._log("params", {key: str(value) for key, value in values.items()})

    def tags(self, values: Mapping[str, object]) -> None:
        """Set tags; the latest value is kept."""
        self._log("tags", {key: str(value) for key, value in values.items()})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log points of this step; NaN and infinity are logged, too."""
        if self._session is None:
            return
        self._log("metrics", {key: float(value) for key, value in values.items()}, step)
        if self._session.shipping:
            self._session.shipping.keep_alive()

    def artifact(self, name: str, data: bytes) -> None:
        """Store a file with the run, under a relative path; the latest content is kept."""
        self._log_file("artifact", name, None, data)

    def image(self, name: str, step: int, png: bytes) -> None:
        """Store a PNG with the run, shown per step."""
        self._log_file("image", name, step, png)

    def sync(self) -> None:
        """Copy the journal to the store; call it before a checkpoint is completed.

        Takes a bounded time. A store that does not answer is reported, not raised: writing the checkpoint will raise.
        """
        if self._session:
            self._session.journal.sync()
            self._session.copy.push(self._session.journal, _SYNC_SECONDS)

    def _log(self, kind: Kind, values: Mapping[str, Any], step: int | None = None) -> None:
        if self._session is None:
            return
        with self._lock:
            self._catch_up(self._session.journal)
            new = {key: value for key, value in values.items() if self._is_new((kind, key, step), value)}
            if new:
                self._session.journal.append(Entry(kind, new, step))

    def _log_file(self, kind: Kind, name: str, step: int | None, data: bytes) -> None:
        if self._session is None:
            return
        digest = hashlib.sha256(data).hexdigest()
        with self._lock:
            self._catch_up(self._session.journal)
            if self._is_new((kind, name, step), digest):
                with local_errors(path := self._session.run.files / digest):
                    place_file(path, partial(_write, data))
                self._session.journal.append(Entry(kind, {"name": name, "sha256": digest}, step))

    def _is_new(self, key: tuple[Kind, str, int | None], value: object) -> bool:
        return key not in self._logged or (key[0] != "metrics" and self._logged[key] != value)

    def _catch_up(self, journal: Journal) -> None:
        """Read new lines of the journal, from this process or another."""
        for entry, end in read_entries(journal.path, self._read_until):
            if entry.kind in ("artifact", "image"):
                self._logged[entry.kind, entry.values["name"], entry.step] = entry.values["sha256"]
            elif entry.kind in ("metrics", "params", "tags"):
                self._logged.update({(entry.kind, key, entry.step): value for key, value in entry.values.items()})
            self._read_until = end


@contextmanager
def open_tracker(
    config: StudyConfig, store: Store, study_run: Run | None, *, enabled: bool = True
) -> Iterator[Tracker]:
    """Start or continue the MLflow run of a study's run, or of the study for None, while the body runs.

    The run ends FINISHED, FAILED with the error in one line, or KILLED if a signal ended the body. `enabled=False`, for
    all ranks but the first, logs nothing. With `tracking.kind: none` only the journal is written.

    Raises InputError for an invalid tracking address, and StoreError when the disk or the store fails. Failures of the
    tracking server are not raised.
    """
    if not enabled:
        yield Tracker()
        return
    session = _begin(config, store, study_run)
    try:
        yield Tracker(session)
    except BaseException as problem:
        # The user needs the first error, not one that follows from it.
        with suppress(StoreError):
            _end(session, *_outcome(problem))
        raise
    _end(session, "FINISHED")


def read_points(config: StudyConfig, store: Store, study_run: Run | None) -> list[Point]:
    """Every metric point of a variant, or of the study for None, in the order of logging; empty without a journal.

    With a remote store, points of this machine, which may be newer than the store's copy, come first.
    """
    run = run_folder(config, store, study_run)
    own = run.journal.read_bytes() if run.journal.exists() else b""
    copy = StoreCopy(store, run).fetch()
    if copy is not None:
        ours, theirs = header_of(own), header_of(copy)
        own = own if ours == theirs else b""
        own += missing(own, copy)
    # The first value of a point counts, also in journals of earlier versions, which may hold a point twice.
    first: dict[tuple[str, int], Point] = {}
    for point in points(parse(own)):
        first.setdefault((point.key, point.step), point)
    return list(first.values())


def collect(config: StudyConfig, store: Store, complete: Iterable[Run]) -> None:
    """Fetch the journals of complete variants from a remote store, and ship what their machines did not ship.

    Their runs end FINISHED.
    """
    for study_run in complete if config.tracking.kind == "mlflow" else ():
        if StoreCopy(store, run_folder(config, store, study_run)).is_needed:
            with open_tracker(config, store, study_run):
                pass


def end_failed(config: StudyConfig, store: Store, study_run: Run, error: DitError) -> None:
    """End a variant's run FAILED with this error if its machines are gone, and ship what they did not ship.

    Does nothing if the store has no journal of the variant. Waits for the server up to a timeout.

    Raises StoreError when the disk or the store fails.
    """
    if config.tracking.kind == "none" or not StoreCopy(store, run_folder(config, store, study_run)).fetch():
        return
    with suppress(type(error)), open_tracker(config, store, study_run):
        raise error
    flush(config, store)


def _begin(config: StudyConfig, store: Store, study_run: Run | None) -> _Session:
    target = resolve_target(config, store) if config.tracking.kind == "mlflow" else None
    run = run_folder(config, store, study_run)
    with local_errors(run.path):
        writer = LockFile.new(run.writers)
        try:
            if study_run is not None:
                # The parent run of all variants may not exist yet.
                _open_journal(config, store, None)[0].close()
            journal, copy = _open_journal(config, store, study_run)
            shipping = Shipping(study_folder(config, store), run, target) if target else None
            journal.append(status_entry("RUNNING", writer))
            return _Session(run, writer, journal, copy, shipping)
        except BaseException:
            writer.release(remove=True)
            raise


def _open_journal(config: StudyConfig, store: Store, study_run: Run | None) -> tuple[Journal, StoreCopy]:
    run = run_folder(config, store, study_run)
    identity = config.training_hash(study_run) if study_run else config.study
    header: dict[str, object] = {"study": config.study, "variant": study_run.spec.name if study_run else None}
    if study_run is not None and not study_run.is_base:
        header["seed"] = study_run.seed
    copy = StoreCopy(store, run)
    close_dead_writers(run)
    journal = open_journal(run.journal, identity, header, copy.fetch())
    if study_run is None and logged_facts(study_folder(config, store)) != (facts := study_facts(config)):
        journal.append(Entry("study", facts))
    copy.push(journal, _SYNC_SECONDS)
    return journal, copy


def _end(session: _Session, status: Status, error: str | None = None) -> None:
    """Finish the journal, then wait for its copy in the store and for the shipper, each for a bounded time."""
    _, writer, journal, copy, shipping = session
    try:
        journal.append(status_entry(status, writer, error))
    finally:
        writer.release(remove=True)
    journal.sync()
    copy.push(journal, _CLOSE_SECONDS)
    journal.close()
    if shipping:
        # A later process can ship a journal in a file store, but a journal in a pod's cache ends with the pod.
        shipping.wait_for_delivery(_CLOSE_SECONDS, start=copy.is_needed)


def _write(data: bytes, file: BinaryIO) -> None:
    file.write(data)


def _outcome(problem: BaseException) -> tuple[Status, str | None]:
    if isinstance(problem, SystemExit) and not problem.code:
        return "FINISHED", None
    if isinstance(problem, StoppedError) or not isinstance(problem, Exception):
        return "KILLED", None
    line = one_line(problem)
    text = line if isinstance(problem, DitError) else f"{type(problem).__name__}: {line}"
    return "FAILED", text[:_ERROR_LENGTH]
