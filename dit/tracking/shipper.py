"""The process that ships a study's journals to MLflow: `python -m dit.tracking.shipper FOLDER`.

One serves all stages of a study that run after or beside each other on a machine, so that the seconds that MLflow's
import takes are paid once, at low priority, and no stage waits for them. It outlives whoever started it, learns from
the writers' leases how they end, and goes when nothing is left to do.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dit.errors import one_line, root_cause
from dit.storage import Store, open_store
from dit.tracking.journal import read_header
from dit.tracking.lock_file import Lease
from dit.tracking.paths import RunFolder, StudyFolder
from dit.tracking.shipper_process import TARGET_VARIABLE
from dit.tracking.state import ShipperState, drain_mark, shipper_lock, waiting, write_shipper
from dit.tracking.target import Target
from dit.tracking.writer_session import close_dead_writers

if TYPE_CHECKING:
    from dit.tracking.journal_upload import JournalUpload
    from dit.tracking.mlflow_client import MlflowRuns

ROUND_SECONDS = 2.0
TICK_SECONDS = 0.1
LINGER_SECONDS = 60.0
"""How long it waits for the next stage."""
GIVE_UP_SECONDS = 30.0
"""How long it goes on trying when nobody writes and the server does not answer; a later stage tries again."""
PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Between attempts while the server does not answer; the last is repeated."""
HEARTBEAT_SECONDS = 30.0
SILENCE_SECONDS = 300.0
"""A run without a heartbeat for so long is taken for dead; generous, for clocks of machines differ."""


class Shipper:
    """Serves one study and one target."""

    def __init__(self, study: StudyFolder, target: Target) -> None:
        self._study, self._target = study, target
        self._store: Store | None = None
        self._sink: MlflowRuns | None = None
        self._feeds: dict[str, JournalUpload] = {}
        self._failures = 0
        self._next_beat = 0.0
        self._asked_to_go = False
        self._state: ShipperState | None = None
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._go)

    def serve(self, lease: Lease) -> bool:
        """Ship, under the shipper's lease, until nobody writes and nothing waits; False when it had to give up.

        That is when the server does not answer, or when the study was removed, which another may have begun anew.
        """
        self._tell(None)
        # Whoever still wants the end sets the mark again.
        drain_mark(self._study, self._target).unlink(missing_ok=True)
        busy = time.monotonic()
        while not lease.is_lost():
            signs, live = self._signs(), self._live()
            if live:
                busy = time.monotonic()
            error = self._attempt(live)
            idle = time.monotonic() - busy
            if not live and not self._live():
                if error is None and (self._is_asked_to_go() or idle > LINGER_SECONDS):
                    drain_mark(self._study, self._target).unlink(missing_ok=True)
                    return True
                if error is not None and idle > GIVE_UP_SECONDS:
                    return False
            self._pause(signs, ROUND_SECONDS if error is None else PAUSES_SECONDS[: self._failures][-1])
        return False

    def has_work(self) -> bool:
        """Whether somebody began to write, or something began to wait, since `serve` returned."""
        return bool(self._live() or waiting(self._study, self._target))

    def _attempt(self, live: set[Path]) -> str | None:
        """One round; what hindered it, or None."""
        try:
            self._ship(live)
        except Exception as problem:
            # Whatever the server, its driver or the network raise, points must not be lost to it: say, wait, retry.
            cause = root_cause(problem)
            error = (one_line(cause) or type(cause).__name__)[:200]
            if self._state is None or self._state.error != error:
                traceback.print_exc()
            self._failures += 1
            self._tell(error)
            return error
        self._failures = 0
        self._tell(None)
        return None

    def _ship(self, live: set[Path]) -> None:
        from dit.tracking.mlflow_client import MlflowRuns

        if self._store is None:
            self._store = open_store(self._target.store)
        if self._sink is None:
            self._sink = MlflowRuns(self._target)
        feeds = list(self._find_feeds(self._store))
        parents = [feed for feed in feeds if feed.run == self._study.parent]
        children = [feed for feed in feeds if feed.run != self._study.parent]
        for feed in parents:
            feed.ship(self._sink, None)
        for feed in children:
            feed.ship(self._sink, parents[-1].run_id if parents else None)
            # A run that began since the round did is not in the set yet.
            lives = feed.is_current and (feed.run.path in live or feed.run.is_live())
            feed.settle(self._sink, live=lives, ended=feed.ended)
        latest = max((feed.ended for feed in feeds if feed.ended[1]), default=(0, None))
        # All journals of the study itself, those moved aside too, belong to one run.
        for feed in parents:
            feed.settle(self._sink, live=bool(live), ended=latest)
        living = [feed for feed in children if feed.is_current and feed.run.path in live]
        self._beat([*living, *(parents if live else [])])
        for feed in feeds:
            feed.ship_files(self._sink)

    def _find_feeds(self, store: Store) -> Iterator[JournalUpload]:
        from dit.tracking.journal_upload import JournalUpload

        for run in self._study.runs():
            for path in run.journals:
                header = read_header(path)
                if header is None:
                    continue
                name = f"{path} {header.values['id']}"
                if name not in self._feeds:
                    self._feeds[name] = JournalUpload(run, path, header, self._target, store)
                yield self._feeds[name]

    def _beat(self, feeds: list[JournalUpload]) -> None:
        if self._sink is None or time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + HEARTBEAT_SECONDS
        for feed in feeds:
            feed.beat(self._sink)
        ours = {feed.run_id for feed in self._feeds.values()}
        for run_id in self._sink.silent_runs(self._target.study, SILENCE_SECONDS):
            if run_id not in ours:
                self._sink.set_status(run_id, "KILLED", time.time_ns() // 1_000_000, None)

    def _live(self) -> set[Path]:
        runs: list[RunFolder] = self._study.runs()
        for run in runs:
            close_dead_writers(run)
        return {run.path for run in runs if run.is_live()}

    def _pause(self, before: tuple[object, ...], seconds: float) -> None:
        """Wait, but not when a writer came or went since these signs, or somebody waits for the end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._signs() == before:
            time.sleep(TICK_SECONDS)

    def _signs(self) -> tuple[object, ...]:
        writers = tuple(tuple(run.writer_names()) for run in self._study.runs())
        return writers, self._is_asked_to_go()

    def _is_asked_to_go(self) -> bool:
        return self._asked_to_go or drain_mark(self._study, self._target).exists()

    def _go(self, *_: object) -> None:
        self._asked_to_go = True

    def _tell(self, error: str | None) -> None:
        state = ShipperState(os.getpid(), reached=self._sink is not None, error=error)
        if state != self._state and self._study.path.is_dir():
            write_shipper(self._study, self._target, state)
            self._state = state


def main(folder: str) -> None:
    """Serve the study in this folder, unless another process does."""
    study, target = StudyFolder(Path(folder)), Target.from_json(os.environ[TARGET_VARIABLE])
    os.nice(10)
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        # Patience is the shipper's own business: it must notice, meanwhile, what becomes of the writers.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    shipper, again = Shipper(study, target), True
    while again:
        lease = Lease.take(shipper_lock(study, target), patience=1.0)
        if lease is None:
            return
        done = shipper.serve(lease)
        lease.release()
        # A writer that came before the lock was free has not started another shipper.
        again = done and shipper.has_work()


if __name__ == "__main__":
    main(sys.argv[1])
