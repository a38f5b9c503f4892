"""Each rank's own record of how far it is, in the store: also of a rank that hangs, and while others wait for it."""

from __future__ import annotations

import os
import socket
import sys
import time
from types import TracebackType

from dit.console import say
from dit.console.formatting import format_duration
from dit.errors import DitError, FinalError, PeerError
from dit.health.progress import Stalled
from dit.health.stall import GAP_SECONDS, StallObserver, limit_of
from dit.health.stall_report import is_watched, report, stops
from dit.results.progress import rank_progress
from dit.runtime.distributed import Ranks, collective_timeout
from dit.storage import write_record
from dit.storage.lease import JOB
from dit.storage.periodic import Periodic
from dit.study import layout
from dit.study.records import RankActivity, RankProgress
from dit.training.plan import TrainPlan

SECONDS = 15.0
"""Time between two records: short against the minutes after which a hang is named, and 4 small writes a minute."""
GRACE_SECONDS = 60.0
"""Time in which a collective that was not answered fails by itself, with an error that is recorded."""
_OBSERVERS = 2
"""The first ranks look at the records of all: two, because one of them may be frozen itself."""


class Heartbeat:
    """Writes this rank's record every few seconds on a thread, which goes on while a collective blocks the training.

    So the record of a frozen process is old, and that of one that waits is new, with a step that stays the same.
    The record stays after an error, and rank 0 removes all of them at the end of a training.

    The thread also names ranks for which the others wait; in a job, its launcher does. It ends the process when its
    step has not ended long after each collective should have failed: nothing else ends a call that never returns.
    """

    def __init__(self, plan: TrainPlan, ranks: Ranks) -> None:
        self._plan = plan
        self._store, self._key = plan.store, layout.rank_progress(plan.config, plan.run, ranks.rank)
        now = time.time()
        self._record = RankProgress(
            rank=ranks.rank,
            world_size=ranks.world_size,
            host=socket.gethostname(),
            process=os.getpid(),
            step=plan.start_step,
            step_time=now,
            written=now,
            activity="start",
        )
        self._moved = self._looked = time.monotonic()
        self._observer = StallObserver()
        self._periodic: Periodic | None = None

    def __enter__(self) -> Heartbeat:
        # At once: a rank that freezes before its first record could not be named.
        self._periodic = Periodic("progress", SECONDS, self.beat, at_once=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._periodic is not None
        self._periodic.stop()

    def does(self, activity: RankActivity) -> None:
        """Note what the rank does from now on."""
        if self._record.step > self._plan.start_step:
            self._record = self._record.model_copy(update={"activity": activity})
            self._moved = time.monotonic()

    def stepped(self, step: int) -> None:
        """Note that a step is complete; the rank then waits for the others."""
        now, old = time.time(), self._record
        # Until a window is measured, from the second step on: the first one includes compilation.
        own = {"step_seconds": now - old.step_time} if old.step > self._plan.start_step and not old.step_seconds else {}
        self._record = old.model_copy(update={"step": step, "step_time": now, "activity": "ranks", **own})
        self._moved = time.monotonic()

    def measured(self, own_seconds: float, step_seconds: float) -> None:
        """Note the rates of a window: seconds that the rank computes by itself, and of a whole step."""
        self._record = self._record.model_copy(update={"own_seconds": own_seconds, "step_seconds": step_seconds})

    def beat(self) -> None:
        """Write the record, and look whether all ranks get on."""
        now = time.monotonic()
        if now - self._looked > GAP_SECONDS:
            # This process was stopped itself, or its machine slept.
            self._moved = now
        self._looked = now
        if is_watched(self._plan.config):
            self._end_if_stuck(now)
        write_record(self._store, self._key, self._record.model_copy(update={"written": time.time()}))
        if is_watched(self._plan.config) and self._record.rank < _OBSERVERS and not os.environ.get(JOB):
            self._observe(now)

    def _observe(self, now: float) -> None:
        is_new = self._observer.look(rank_progress(self._plan.work, self._plan.run), now)
        stall = self._observer.stall
        if stall is None or not is_new:
            return
        frozen = stall.kind == "frozen" and 0 in {record.rank for record in stall.ranks}
        if self._record.rank == int(frozen):
            wait = format_duration(self._patience)
            consequence = f"the other ranks end when they have waited {wait}; then run the same command to resume"
            report(self._plan.config, self._store, self._plan.run, Stalled(stall, time.time(), consequence))

    @property
    def _patience(self) -> float:
        return max(collective_timeout() + GRACE_SECONDS, limit_of(self._record))

    def _end_if_stuck(self, now: float) -> None:
        """End the process when its step does not end; its threads cannot interrupt the call in which it hangs."""
        waited, record = now - self._moved, self._record
        if waited < self._patience:
            return
        say(
            f"dit: {self._plan.run.name}: rank {record.rank} has not got on since step {record.step} for"
            f" {format_duration(waited)}; it ends, so that the training can be resumed from its last checkpoint"
        )
        sys.stdout.flush()
        error = FinalError if stops(self._plan.config) else PeerError if record.world_size > 1 else DitError
        os._exit(error.exit_code)
