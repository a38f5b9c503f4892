"""Something that a thread does every few seconds, also while the store is away. Torch-free."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dit.console import say
from dit.errors import DitError


class Periodic:
    """Calls `action` every `seconds` on a thread, until `stop`. An error is printed once until a call succeeds.

    The first call comes after `seconds`, or with `at_once` immediately.
    """

    def __init__(self, name: str, seconds: float, action: Callable[[], None], *, at_once: bool = False) -> None:
        self._name, self._seconds, self._action = name, seconds, action
        self._wait = 0.0 if at_once else seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait until the thread has ended; a second call does nothing."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        failed = False
        while not self._ended.wait(self._wait):
            self._wait = self._seconds
            try:
                self._action()
                failed = False
            except DitError as error:
                if not failed:
                    say(f"{self._name}: {error}; trying again every {self._seconds:g} s")
                failed = True
