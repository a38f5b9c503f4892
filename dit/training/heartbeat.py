"""Each rank's own record of how far it is, in the store: also of a rank that hangs, and while others wait for it."""

from __future__ import annotations

import os
import socket
import time
from types import TracebackType

from dit.runtime.distributed import Ranks
from dit.storage import write_record
from dit.storage.periodic import Periodic
from dit.study import layout
from dit.study.records import RankActivity, RankProgress
from dit.training.plan import TrainPlan

SECONDS = 15.0
"""Time between two records: short against the minutes after which a hang is named, and 4 small writes a minute."""


class Heartbeat:
    """Writes this rank's record every few seconds on a thread, which goes on while a collective blocks the training.

    So the record of a frozen process is old, and that of one that waits is new, with a step that stays the same.
    The record stays after an error, and rank 0 removes all of them at the end of a training.
    """

    def __init__(self, plan: TrainPlan, ranks: Ranks) -> None:
        self._store, self._key = plan.store, layout.rank_progress(plan.config, plan.spec, ranks.rank)
        now = time.time()
        self._record = RankProgress(
            rank=ranks.rank,
            world_size=ranks.world_size,
            host=socket.gethostname(),
            process=os.getpid(),
            step=plan.start_step,
            step_time=now,
            written=now,
            activity="data",
        )
        self._periodic: Periodic | None = None

    def __enter__(self) -> Heartbeat:
        self._periodic = Periodic("progress", SECONDS, self.write)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._periodic is not None
        self._periodic.stop()

    def does(self, activity: RankActivity) -> None:
        """Note what the rank does from now on."""
        self._record = self._record.model_copy(update={"activity": activity})

    def stepped(self, step: int) -> None:
        """Note that a step is complete; the rank then waits for the others."""
        self._record = self._record.model_copy(update={"step": step, "step_time": time.time(), "activity": "ranks"})

    def measured(self, own_seconds: float, step_seconds: float) -> None:
        """Note the rates of a window: seconds that the rank computes by itself, and of a whole step."""
        self._record = self._record.model_copy(update={"own_seconds": own_seconds, "step_seconds": step_seconds})

    def write(self) -> None:
        """Write the record."""
        record = self._record.model_copy(update={"written": time.time()})
        write_record(self._store, self._key, record)
