"""What a stage logs to. One call appends one line to the journal; another process ships it.

Nothing here talks to a tracking server or imports mlflow, so the server cannot slow training down.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import BinaryIO

from dit.errors import DitError, StoppedError, StoreError
from dit.storage import Store
from dit.storage.base import local_errors, place_file
from dit.study.config import StudyConfig
from dit.study.variants import ModelSpec
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
from dit.tracking.paths import run_folder, study_folder
from dit.tracking.shipper_process import Shipping
from dit.tracking.store_copy import StoreCopy
from dit.tracking.target import logged_facts, resolve_target, study_facts
from dit.tracking.writer_session import Status, Writer, close_dead_writers

_CLOSE_SECONDS = 20.0
_SYNC_SECONDS = 60.0
_ERROR_LENGTH = 500


class Tracker:
    """Logs to one run. Safe to call from several threads.

    Metric and step identify a point, and its first value is kept: points that a resumed training computes again are not
    logged again. A metric that depends on a protocol, such as a number of samples, must have the protocol in its name.
    """

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None until the server has been reached."""
        return None

    def params(self, values: Mapping[str, object]) -> None:
        """Log the run's parameters. MLflow keeps the first value, and a later one as a tag."""

    def tags(self, values: Mapping[str, object]) -> None:
        """Set tags; the latest value is kept."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log points of this step; NaN and infinity are logged, too."""

    def artifact(self, name: str, data: bytes) -> None:
        """Store a file with the run, under a relative path; the latest content is kept."""

    def image(self, name: str, step: int, png: bytes) -> None:
        """Store a PNG with the run, shown per step."""

    def sync(self) -> None:
        """Copy the journal to the store; call it before a checkpoint is completed.

        Takes a bounded time. A store that does not answer is reported, not raised: writing the checkpoint will raise.
        """


class JournalTracker(Tracker):
    """A tracker that writes a journal.

    Every method raises StoreError when the disk fails.
    """

    def __init__(self, writer: Writer, journal: Journal, copy: StoreCopy, shipping: Shipping | None) -> None:
        self._writer, self._journal, self._copy, self._shipping = writer, journal, copy, shipping
        self._lock = threading.Lock()
        self._steps: dict[str, set[int]] = {}
        self._values: dict[tuple[object, ...], str] = {}
        self._read_until = 0
        self._catch_up()
        writer.begin(journal)

    @property
    def run_id(self) -> str | None:
        """See Tracker."""
        return self._shipping.run_id() if self._shipping else None

    def params(self, values: Mapping[str, object]) -> None:
        """See Tracker."""
        self._log_changes("params", values)

    def tags(self, values: Mapping[str, object]) -> None:
        """See Tracker."""
        self._log_changes("tags", values)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        with self._lock:
            self._catch_up()
            new = {key: float(value) for key, value in values.items() if step not in self._steps.get(key, ())}
            if new:
                self._journal.append(Entry("metrics", new, step))
        if self._shipping:
            self._shipping.keep_alive()

    def artifact(self, name: str, data: bytes) -> None:
        """See Tracker."""
        self._log_file("artifact", name, None, data)

    def image(self, name: str, step: int, png: bytes) -> None:
        """See Tracker."""
        self._log_file("image", name, step, png)

    def sync(self) -> None:
        """See Tracker."""
        self._journal.sync()
        self._copy.push(self._journal, _SYNC_SECONDS)

    def end(self, status: Status, error: str | None = None) -> None:
        """Finish the journal, then wait for its copy in the store and for the shipper, each for a bounded time."""
        self._writer.end(self._journal, status, error)
        self._journal.sync()
        self._copy.push(self._journal, _CLOSE_SECONDS)
        self._journal.close()
        if self._shipping:
            # A later process can ship a journal in a file store; one in a pod's cache ends with the pod.
            self._shipping.wait_for_delivery(_CLOSE_SECONDS, start=self._copy.is_needed)

    def _log_changes(self, kind: Kind, values: Mapping[str, object]) -> None:
        with self._lock:
            self._catch_up()
            new = {key: str(value) for key, value in values.items() if self._values.get((kind, key)) != str(value)}
            if new:
                self._journal.append(Entry(kind, new))

    def _log_file(self, kind: Kind, name: str, step: int | None, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        with self._lock:
            self._catch_up()
            if self._values.get((kind, name, step)) == digest:
                return
            with local_errors(path := self._writer.run.files / digest):
                place_file(path, partial(_write, data))
            self._journal.append(Entry(kind, {"name": name, "sha256": digest}, step))

    def _catch_up(self) -> None:
        """Read what the journal has gained, from this process or another."""
        for entry, end in read_entries(self._journal.path, self._read_until):
            self._remember(entry)
            self._read_until = end

    def _remember(self, entry: Entry) -> None:
        if entry.kind == "metrics" and entry.step is not None:
            for key in entry.values:
                self._steps.setdefault(key, set()).add(entry.step)
        elif entry.kind in ("params", "tags"):
            self._values.update({(entry.kind, key): value for key, value in entry.values.items()})
        elif entry.kind in ("artifact", "image"):
            self._values[entry.kind, entry.values["name"], entry.step] = entry.values["sha256"]


@contextmanager
def open_tracker(
    config: StudyConfig, store: Store, spec: ModelSpec | None, *, enabled: bool = True
) -> Iterator[Tracker]:
    """Start or continue the run of a variant, or of the study for None, while the body runs.

    The run ends FINISHED, FAILED with the error in one line, or KILLED if a signal ended the body. `enabled=False`, for
    all ranks but the first, logs nothing. With `tracking.kind: none` only the journal is written.

    Raises InputError for a tracking address that cannot work, and StoreError when the disk or the store fails; no state
    of a tracking server raises anything.
    """
    if not enabled:
        yield Tracker()
        return
    tracker = _begin(config, store, spec)
    try:
        yield tracker
    except BaseException as problem:
        # The user needs the first error.
        with suppress(StoreError):
            tracker.end(*_outcome(problem))
        raise
    tracker.end("FINISHED")


def read_points(config: StudyConfig, store: Store, spec: ModelSpec | None) -> list[Point]:
    """Every metric point of a variant, or of the study for None, in the order of logging; empty without a journal.

    With a remote store, points of this machine, which may be newer than the store's copy, come first.
    """
    run = run_folder(config, store, spec)
    own = run.journal.read_bytes() if run.journal.exists() else b""
    copy = StoreCopy(store, run).fetch()
    if copy is not None:
        ours, theirs = header_of(own), header_of(copy)
        own = own if ours == theirs else b""
        own += missing(own, copy)
    return list(points(parse(own)))


def _begin(config: StudyConfig, store: Store, spec: ModelSpec | None) -> JournalTracker:
    target = resolve_target(config, store) if config.tracking.kind == "mlflow" else None
    run = run_folder(config, store, spec)
    with local_errors(run.path):
        writer = Writer(run)
        try:
            if spec is not None:
                # The parent run of all variants may not exist yet.
                _open_journal(config, store, None)[0].close()
            journal, copy = _open_journal(config, store, spec)
            shipping = Shipping(study_folder(config, store), run, target) if target else None
            return JournalTracker(writer, journal, copy, shipping)
        except BaseException:
            writer.withdraw()
            raise


def _open_journal(config: StudyConfig, store: Store, spec: ModelSpec | None) -> tuple[Journal, StoreCopy]:
    run = run_folder(config, store, spec)
    identity = config.training_hash(spec) if spec else config.study
    header = {"study": config.study, "variant": spec.name if spec else None}
    copy = StoreCopy(store, run)
    close_dead_writers(run)
    journal = open_journal(run.journal, identity, header, copy.fetch())
    if spec is None and logged_facts(study_folder(config, store)) != (facts := study_facts(config)):
        journal.append(Entry("study", facts))
    copy.push(journal, _SYNC_SECONDS)
    return journal, copy


def _write(data: bytes, file: BinaryIO) -> None:
    file.write(data)


def _outcome(problem: BaseException) -> tuple[Status, str | None]:
    if isinstance(problem, SystemExit) and not problem.code:
        return "FINISHED", None
    if isinstance(problem, StoppedError) or not isinstance(problem, Exception):
        return "KILLED", None
    line = " ".join(str(problem).split())
    text = line if isinstance(problem, DitError) else f"{type(problem).__name__}: {line}"
    return "FAILED", text[:_ERROR_LENGTH]
