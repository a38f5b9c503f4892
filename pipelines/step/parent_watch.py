"""Ends a step when its parent ends, even by SIGKILL.

kfp's SubprocessRunner gives no handle to its processes, but they inherit standard input. The parent replaces it by a
pipe on which nothing is written; the pipe closes when the parent pulls the lifeline or is gone.
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
"""Time for a step to write a checkpoint after SIGTERM."""
_WATCHER = "lifeline"


class ChildLifeline:
    """The parent's side, a context manager: processes started in the body end at the latest when it exits."""

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
        """Send SIGTERM to the running step and all later ones; safe in a signal handler."""
        if not self._pulled:
            self._pulled = True
            os.close(self._write)


def end_with_parent() -> bool:
    """The step's side: end when the parent ends. Returns False, and does nothing, if there is no lifeline.

    A process that runs several steps may call it before each.
    """
    if os.environ.pop(VARIABLE, None) is None:
        return any(thread.name == _WATCHER for thread in threading.enumerate())
    # A terminal sends Ctrl-C to the whole process group; only the parent acts on it, through the lifeline.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, name=_WATCHER, daemon=True).start()
    return True


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
