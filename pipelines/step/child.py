"""Runs a launcher in a child process, and again when a signal has killed it: the next one adopts the job.

Kubeflow Pipelines has no setting for this: it retries a step whose pod was lost, not one whose process was killed.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable

from dit.console import say
from dit.console.formatting import format_duration
from dit.errors import DitError
from pipelines.cluster.pod_reason import killed_by
from pipelines.cluster.retry import RETRY, pauses


class ChildKilled(DitError):
    """A signal killed the child process in every try."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def run_in_child(work: Callable[[], object], retries: int) -> None:
    """Do the work in a child process; a child that a signal killed is started again, up to `retries` times.

    Raises SystemExit with the child's exit code when it is not 0: the child has reported its error itself.
    Raises ChildKilled when the last child was killed, too.
    """
    waits = pauses()
    for left in range(retries, -1, -1):
        # Forked: the child has read and imported what the parent has.
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        code = child.exitcode or 0
        if code >= 0:
            if code:
                raise SystemExit(code)
            return
        error = ChildKilled(f"the launcher {killed_by(-code)}", -code)
        if not left:
            raise error
        pause = next(waits)
        say(f"{error}{RETRY}{format_duration(pause)}")
        time.sleep(pause)
