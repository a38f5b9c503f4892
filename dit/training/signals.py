"""SIGTERM and SIGINT as a request to stop at the end of a step, agreed by all ranks."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from dit.runtime.distributed import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A terminal signals every process of the group, and a launcher among them passes the signal on: that is one request.
SAME_REQUEST_SECONDS = 1.0


class StopRequest:
    """While entered, the first signal is remembered and a later one ends the process at once.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.
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
        """The signal that any rank has received, 0 for none: the same answer on all ranks.

        A collective between hosts, a fraction of a millisecond, made at every step: pods are told to stop at different
        moments, and all must stop after the same step.
        """
        return ranks.maximum(self.received)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._since = number, now
        elif now - self._since > SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
