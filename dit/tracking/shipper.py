"""The process that ships a study's journals to MLflow: `python -m dit.tracking.shipper FOLDER PARENT`.

It is a child of the process that started the study and serves all of the study's stages on that machine, so that
MLflow, whose import takes seconds, is imported once, at low priority. It ends when its parent has ended, no process
writes to the journals, and everything has been sent.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dit.errors import one_line, root_cause
from dit.storage import Store, open_store
from dit.tracking.journal import read_header
from dit.tracking.lock_file import LockFile
from dit.tracking.paths import StudyFolder
from dit.tracking.shipper_process import TARGET_VARIABLE, mend
from dit.tracking.state import read_state, waiting
from dit.tracking.target import Target
from dit.tracking.writer_session import close_dead_writers

if TYPE_CHECKING:
    from dit.tracking.journal_upload import JournalUpload
    from dit.tracking.mlflow_client import MlflowRuns

ROUND_SECONDS = 2.0
TICK_SECONDS = 0.1
GIVE_UP_SECONDS = 30.0
"""Duration of retries after parent and writers have ended."""
PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Between retries; the last is repeated."""
HEARTBEAT_SECONDS = 30.0
SILENCE_SECONDS = 300.0
"""A run whose heartbeat is older counts as killed; long, because the clocks of machines differ."""


class Shipper:
    """Ships one study to one target."""

    def __init__(self, study: StudyFolder, target: Target, parent: int) -> None:
        self._study, self._target, self._parent = study, target, parent
        self._state = read_state(study, target)
        self._file: tuple[int, int] | None = None
        self._store: Store | None = None
        self._client: MlflowRuns | None = None
        self._uploads: dict[tuple[Path, str], JournalUpload] = {}
        self._failures = 0
        self._next_heartbeat = 0.0

    def serve(self, lock: LockFile) -> bool:
        """Ship until parent and writers have ended; False if something is left to ship.

        Something is left if the server does not answer, or if the study was removed.
        """
        self._state, self._client, self._uploads = read_state(self._study, self._target), None, {}
        self._state.reached, self._state.error, self._state.is_final = False, None, False
        self._state.save()
        needed = time.monotonic()
        while not lock.is_lost():
            self._follow_database()
            signs, live = self._signs(), self._live()
            error = self._attempt(live)
            if live or not self._is_orphan() or self._live():
                needed = time.monotonic()
            elif error is None:
                return True
            elif self._state.is_final or time.monotonic() - needed > GIVE_UP_SECONDS:
                return False
            self._pause(signs, ROUND_SECONDS if error is None else PAUSES_SECONDS[: self._failures][-1])
        return False

    def has_work(self) -> bool:
        """Whether a process writes to a journal, or something is left to ship."""
        return bool(self._live() or waiting(self._study, self._target))

    def _attempt(self, live: set[Path]) -> str | None:
        """One round; the error, or None."""
        try:
            self._ship(live)
        except Exception as problem:
            # No error of the server, its driver or the network may lose points: report it and retry.
            error = reason(problem)
            if self._state.error != error:
                traceback.print_exc()
            self._state.is_final = self._target.database is not None and is_final(problem)
            # The server may come back with an empty database: find experiment and runs by name again.
            self._client = None
            self._failures += 1
            self._report(error)
            return error
        self._failures, self._state.is_final = 0, False
        self._report(None)
        return None

    def _ship(self, live: set[Path]) -> None:
        store, client = self._connect()
        uploads = list(self._find_uploads(store))
        parents = [upload for upload in uploads if upload.run == self._study]
        children = [upload for upload in uploads if upload.run != self._study]
        for upload in parents:
            upload.ship(client, None)
        for upload in children:
            upload.ship(client, parents[-1].run_id if parents else None)
            # A writer that started after this round did is not in `live`.
            is_live = upload.is_current and (upload.run.path in live or upload.run.is_live())
            upload.set_status(client, live=is_live, ended=upload.ended)
        latest = max((upload.ended for upload in uploads if upload.ended[1]), default=(0, None))
        # Journals that were moved aside share the study's one run.
        for upload in parents:
            upload.set_status(client, live=bool(live), ended=latest)
        living = [upload for upload in children if upload.is_current and upload.run.path in live]
        self._send_heartbeats(client, [*living, *(parents if live else [])])
        for upload in uploads:
            upload.ship_files(client)

    def _connect(self) -> tuple[Store, MlflowRuns]:
        from dit.tracking.mlflow_client import MlflowRuns

        if self._store is None:
            self._store = open_store(self._target.store)
        if self._client is None:
            mend(self._target)
            client = MlflowRuns(self._target)
            for name, shipped in list(self._state.journals.items()):
                if shipped.run_id is None or not client.is_active(shipped.run_id):
                    del self._state.journals[name]
            self._client, self._file = client, self._database_file()
            self._report(None)
        return self._store, self._client

    def _follow_database(self) -> None:
        """Start this process again if the database was removed or replaced: MLflow keeps the old file open."""
        if self._file is not None and self._database_file() != self._file:
            sys.stderr.write(f"{self._target.database} was removed or replaced; it is filled again from the journals\n")
            sys.stderr.flush()
            os.execv(sys.executable, [sys.executable, "-m", "dit.tracking.shipper", *sys.argv[1:]])

    def _database_file(self) -> tuple[int, int] | None:
        """What identifies the database's file; None for a server, and for a file that is gone."""
        with suppress(OSError):
            if self._target.database:
                status = self._target.database.stat()
                return status.st_dev, status.st_ino
        return None

    def _find_uploads(self, store: Store) -> Iterator[JournalUpload]:
        from dit.tracking.journal_upload import JournalUpload

        for run in self._study.runs():
            for path in run.journals:
                header = read_header(path)
                if header is not None:
                    key = path, header.values["id"]
                    if key not in self._uploads:
                        self._uploads[key] = JournalUpload(run, path, header, self._target, store, self._state)
                    yield self._uploads[key]

    def _send_heartbeats(self, client: MlflowRuns, uploads: list[JournalUpload]) -> None:
        if time.monotonic() < self._next_heartbeat:
            return
        self._next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS
        client.check_experiment()
        for run_id in filter(None, (upload.run_id for upload in uploads)):
            client.send_heartbeat(run_id)
        ours = {upload.run_id for upload in self._uploads.values()}
        for run_id in client.silent_runs(self._target.study, SILENCE_SECONDS):
            if run_id not in ours:
                client.set_status(run_id, "KILLED", time.time_ns() // 1_000_000, None)

    def _live(self) -> set[Path]:
        runs = self._study.runs()
        for run in runs:
            close_dead_writers(run)
        return {run.path for run in runs if run.is_live()}

    def _pause(self, before: tuple[object, ...], seconds: float) -> None:
        """Wait, at most until a writer starts or ends, or the parent ends, since `before`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._signs() == before:
            time.sleep(TICK_SECONDS)

    def _signs(self) -> tuple[object, ...]:
        return *(tuple(run.writer_names()) for run in self._study.runs()), self._is_orphan()

    def _is_orphan(self) -> bool:
        return os.getppid() != self._parent

    def _report(self, error: str | None) -> None:
        before, now = (self._state.reached, self._state.error), (self._client is not None, error)
        if before != now:
            self._state.reached, self._state.error = now
            self._state.save()


def reason(problem: BaseException) -> str:
    """The reason of an error in one line.

    It is the innermost exception where the network or the disk failed, because MLflow wraps these at length, and the
    outermost otherwise, because what follows it inside is a detail.
    """
    inner = root_cause(problem)
    cause = inner if isinstance(inner, OSError | sqlite3.Error) else problem
    return (one_line(str(cause).partition("[SQL")[0]) or type(cause).__name__)[:300]


def is_final(problem: BaseException) -> bool:
    """Whether a database will refuse every further try: damaged, or of another version of MLflow."""
    inner = root_cause(problem)
    damaged = isinstance(inner, sqlite3.DatabaseError) and "locked" not in str(inner)
    return damaged or "database schema" in str(problem) or type(inner).__module__.startswith("alembic")


def main(folder: str, parent: int) -> None:
    """Serve the study in this folder, unless another process serves it."""
    study, target = StudyFolder(Path(folder)), Target(**json.loads(os.environ[TARGET_VARIABLE]))
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        # The shipper has its own retries, between which it watches the writers.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    shipper, again = Shipper(study, target, parent), True
    while again:
        lock = LockFile.take(study.lock, timeout=1.0)
        if lock is None:
            return
        done = shipper.serve(lock)
        lock.release()
        # A writer that started before the lock was free did not start another shipper.
        again = done and shipper.has_work()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
