"""Retries with exponential backoff, for calls to a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from dit.console import say
from dit.console.formatting import format_duration
from dit.errors import DitError

T = TypeVar("T")
RETRY = "; retry in "
"""Ends the line of a failed call, before the pause: a log whose last line has it belongs to a process that waits."""
_FIRST, _LONGEST = 1.0, 30.0
# A call that worked for longer than this before it failed was well again.
_WELL_SECONDS = 300.0


def pauses() -> Iterator[float]:
    """Seconds to wait before each retry: 1, 2, 4 ... 30, 30."""
    pause = _FIRST
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST)


def retry(call: Callable[[], T], transient: type[DitError] | tuple[type[DitError], ...], limit: float) -> T:
    """The result of `call`, retried for up to `limit` seconds after its first failure while it raises `transient`.

    Raises the last `transient` error when the time is up.
    """
    waits, since = pauses(), 0.0
    while True:
        begun = time.monotonic()
        try:
            return call()
        except transient as error:
            failed = time.monotonic()
            if not since or failed - begun > _WELL_SECONDS:
                waits, since = pauses(), failed
            pause = next(waits)
            if failed - since + pause > limit:
                raise
            say(f"{error}{RETRY}{format_duration(pause)}")
            time.sleep(pause)
