"""What a stage logs to: one call, one line in the journal; shipping is another process's work.

Nothing here talks to a tracking server or imports its library, so that no state of the server can slow a step down.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import BinaryIO

from dit.console import say
from dit.errors import DitError, StoppedError, StoreError, one_line
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
from dit.tracking.paths import RunFolder, StudyFolder, run_folder, study_folder
from dit.tracking.shipper_process import Shipping
from dit.tracking.store_copy import Mirror
from dit.tracking.target import Target, resolve_target
from dit.tracking.writer_session import Status, Writer, close_dead_writers

_CLOSE_SECONDS = 20.0
_SYNC_SECONDS = 60.0
_ERROR_LENGTH = 500


class Tracker:
    """Logs to one run. Safe to call from several threads.

    A point is named by its metric and step, and the first one stands: what a resumed training computes again is not
    logged again. A metric that depends on a protocol, such as a number of samples, has to carry it in its name.
    """

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None until the server has been reached for the first time."""
        return None

    def params(self, values: Mapping[str, object]) -> None:
        """Log what the run was made with. A value that changes later is kept as a tag beside the first one."""

    def tags(self, values: Mapping[str, object]) -> None:
        """Set tags; the latest value stands."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log points of this step. Not a number and infinity are points, too."""

    def artifact(self, name: str, data: bytes) -> None:
        """Keep a file with the run, under a relative path; the latest content stands."""

    def image(self, name: str, step: int, png: bytes) -> None:
        """Keep a PNG with the run, shown per step."""

    def sync(self) -> None:
        """Make what was logged outlive this machine; call it before a checkpoint is completed.

        Bounded in time. A store that does not answer is said, not raised: the checkpoint itself will find out.
        """


class JournalTracker(Tracker):
    """A tracker that writes a journal. Every method raises StoreError where the disk fails."""

    def __init__(self, writer: Writer, journal: Journal, mirror: Mirror, shipping: Shipping | None) -> None:
        self._writer, self._journal, self._mirror, self._shipping = writer, journal, mirror, shipping
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
        self._mirror.push(self._journal, _SYNC_SECONDS)

    def end(self, status: Status, error: str | None = None) -> None:
        """Finish the journal, then wait for its copy in the store and for the shipper, both within bounds."""
        self._writer.end(self._journal, status, error)
        self._journal.sync()
        self._mirror.push(self._journal, _CLOSE_SECONDS)
        self._journal.close()
        if self._shipping:
            # A journal in the store's folder can be shipped by any later process; one in the cache dies with a pod.
            self._shipping.wait(_CLOSE_SECONDS, hopeful=self._mirror.is_needed)

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
        """Learn what the journal holds: from before, from here, and what others have added meanwhile."""
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
    """Continue, or begin, the run of a variant, or with None of the study, for as long as the body runs.

    The run ends FINISHED, FAILED with the error's line, or KILLED when a signal ended the body. `enabled=False` logs
    nothing, for all ranks but the first. Without MLflow (tracking.kind none) there is the journal alone.

    Raises InputError for a tracking address that cannot work and StoreError where the disk or the store fails; never
    because of a tracking server.
    """
    if not enabled:
        yield Tracker()
        return
    tracker = _begin(config, store, spec)
    try:
        yield tracker
    except BaseException as problem:
        # What went wrong first is what the user has to hear of.
        with suppress(StoreError):
            tracker.end(*_outcome(problem))
        raise
    tracker.end("FINISHED")


def read_points(config: StudyConfig, store: Store, spec: ModelSpec | None) -> list[Point]:
    """Every metric point of a variant, or with None of the study, in the order of logging; empty without a journal.

    Of a remote store, this machine's points, which may be newer than the store's, come before those of others.
    """
    run = run_folder(config, store, spec)
    own = run.journal.read_bytes() if run.journal.exists() else b""
    copy = Mirror(store, run).fetch()
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
                # The parent run of all variants, which nothing else may have begun.
                _open_journal(config, store, None)[0].close()
            journal, mirror = _open_journal(config, store, spec)
            shipping = _ship(study_folder(config, store), run, target) if target else None
            return JournalTracker(writer, journal, mirror, shipping)
        except BaseException:
            writer.withdraw()
            raise


def _open_journal(config: StudyConfig, store: Store, spec: ModelSpec | None) -> tuple[Journal, Mirror]:
    run = run_folder(config, store, spec)
    identity = config.training_hash(spec) if spec else config.study
    header = {"study": config.study, "variant": spec.name if spec else None}
    mirror = Mirror(store, run)
    close_dead_writers(run)
    journal = open_journal(run.journal, identity, header, mirror.fetch())
    mirror.push(journal, _SYNC_SECONDS)
    return journal, mirror


def _write(data: bytes, file: BinaryIO) -> None:
    file.write(data)


def _ship(study: StudyFolder, run: RunFolder, target: Target) -> Shipping:
    if target.stays_here and not study.target.exists():
        say(
            f"tracking: no server is set (tracking.uri or MLFLOW_TRACKING_URI); runs go to {target.uri}"
            " on this machine, where `make ui` shows them"
        )
    return Shipping(study, run, target)


def _outcome(problem: BaseException) -> tuple[Status, str | None]:
    if isinstance(problem, SystemExit) and not problem.code:
        return "FINISHED", None
    if isinstance(problem, StoppedError) or not isinstance(problem, Exception):
        return "KILLED", None
    line = one_line(problem)
    text = line if isinstance(problem, DitError) else f"{type(problem).__name__}: {line}"
    return "FAILED", text[:_ERROR_LENGTH]
