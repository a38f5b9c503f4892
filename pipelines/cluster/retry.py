"""Retries with exponential backoff, for calls to a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from dit.console import say
from dit.console.formatting import format_duration
from dit.errors import DitError

T = TypeVar("T")
_FIRST, _LONGEST = 1.0, 30.0


def pauses() -> Iterator[float]:
    """Seconds to wait before each retry: 1, 2, 4 ... 30, 30."""
    pause = _FIRST
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST)


def retry(call: Callable[[], T], transient: type[DitError], limit: float) -> T:
    """The result of `call`, retried for up to `limit` seconds while it raises `transient`.

    Raises the last `transient` error when the time is up.
    """
    started = time.monotonic()
    for pause in pauses():
        try:
            return call()
        except transient as error:
            waited = time.monotonic() - started
            if waited + pause > limit:
                raise
            say(f"{error}; retry in {format_duration(pause)}")
            time.sleep(pause)
    raise AssertionError("pauses never end")
