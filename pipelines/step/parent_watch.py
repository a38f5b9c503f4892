"""A step's life bound to its starter's: however the starter ends, even by SIGKILL, its step ends too.

kfp's SubprocessRunner gives no hold on the processes it starts, but they inherit standard input. There they find a
pipe on which nothing is ever written; it closes when the starter pulls it, or is gone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import TracebackType
from typing import Self

VARIABLE = "DIT_LIFELINE"
GRACE_SECONDS = 20.0
"""What a step gets, after SIGTERM, to write a checkpoint."""


class ChildLifeline:
    """The starter's side, a context manager: processes started inside it end at the latest when it is left."""

    def __enter__(self) -> Self:
        read, self._write = os.pipe()
        self._stdin = os.dup(0)
        os.dup2(read, 0)
        os.close(read)
        os.environ[VARIABLE] = "1"
        self._pulled = False
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.pull()
        os.environ.pop(VARIABLE, None)
        os.dup2(self._stdin, 0)
        os.close(self._stdin)

    def pull(self) -> None:
        """End the step under way, and every one that starts later, by SIGTERM; safe inside a signal handler."""
        if not self._pulled:
            self._pulled = True
            os.close(self._write)


def end_with_parent() -> bool:
    """The step's side: end when the starter does. False, and nothing done, where no lifeline was laid on."""
    if os.environ.pop(VARIABLE, None) is None:
        return False
    # A terminal's Ctrl-C reaches the whole group; the starter decides and tells by the lifeline.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, name="lifeline", daemon=True).start()
    return True


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
