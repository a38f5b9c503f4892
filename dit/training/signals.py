"""SIGTERM and SIGINT as a request to stop after the current step, on all ranks."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from dit.runtime.distributed import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A terminal signals every process of its group, and torchrun passes the signal on, so one Ctrl-C can arrive twice.
SAME_REQUEST_SECONDS = 1.0


class StopRequest:
    """Inside the context, the first signal is kept for `agreed` and a later one ends the process at once.

    Python allows handlers in the main thread only; elsewhere signals keep their default effect.
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, ranks: Ranks) -> int:
        """Return the signal that any rank has received, 0 for none; equal on all ranks. A collective.

        Called at every step, because pods receive their signals at different times and must stop after the same step.
        It runs between hosts, takes a fraction of a millisecond, and does not wait for the device.
        """
        return ranks.maximum(self.received)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._since = number, now
        elif now - self._since > SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
