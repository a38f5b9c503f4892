"""What a person sees of a running pipeline: a line per step, where kfp would print forty."""

from __future__ import annotations

import io
import time
from collections import deque
from typing import TextIO

from dit.console import console
from dit.errors import DitError, InputError
from dit.formatting import format_duration
from pipelines.events import Event, from_line

_TAIL = 5


class StepLog(io.TextIOBase):
    """Stands in for standard output while kfp runs: keeps all of it in a log and shows the steps' own events."""

    def __init__(self, log: TextIO, total: int) -> None:
        self._log, self._total = log, total
        self._screen = console()
        self._rest = ""
        self._step = ""
        self._number = 0
        self._started = 0.0
        self._said: list[str] = []
        self._error: Event | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL)

    def writable(self) -> bool:
        """See TextIOBase."""
        return True

    def write(self, text: str) -> int:
        """Take text that kfp prints, and act on each whole line."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            event = from_line(line)
            if event is None:
                self._note(line)
            else:
                self._show(event)
        return len(text)

    def flush(self) -> None:
        """See TextIOBase."""
        self._log.flush()

    def failure(self, log: str) -> DitError:
        """Why the pipeline ended early, in one line; `log` is where the rest can be read."""
        if self._error is not None:
            return (InputError if self._error.code == InputError.exit_code else DitError)(self._error.text)
        last = self._tail[-1] if self._tail else "nothing"
        return DitError(f"{self._step or 'the first step'} broke off; its last output was: {last}; all of it: {log}")

    def _note(self, line: str) -> None:
        self._log.write(line + "\n")
        # kfp frames every step's output by its own time-stamped lines and rules.
        if line.startswith("    ") and line.strip() and "[KFP Executor" not in line:
            self._tail.append(line.strip())

    def _show(self, event: Event) -> None:
        self._log.write(f"{event.kind}: {event.text}\n")
        if event.kind == "begin":
            self._step, self._number, self._started = event.text, self._number + 1, time.monotonic()
            self._said = []
            self._print(f"{self._place()} {self._step}", on_terminal=False)
        elif event.kind == "line":
            # A bar is being drawn on the terminal: what is said meanwhile waits for the step's end.
            self._said.append(event.text)
            self._print(f"    {event.text}", on_terminal=False)
        elif event.kind == "end":
            took = format_duration(time.monotonic() - self._started)
            self._print(f"    done in {took}", on_terminal=False)
            self._print(f"✓ {self._place()} {self._step:<22} {took:>8}  {''.join(self._said[-1:])}", on_terminal=True)
        else:
            self._error = event

    def _print(self, line: str, *, on_terminal: bool) -> None:
        if self._screen.is_terminal != on_terminal:
            return
        if on_terminal:
            self._screen.print(line, markup=False, no_wrap=True, overflow="ellipsis")
        else:
            self._screen.out(line, highlight=False)

    def _place(self) -> str:
        return f"{self._number:>{len(str(self._total))}}/{self._total}"
