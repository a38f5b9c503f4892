"""Output of a running study on this machine: a line and a bar per step, instead of kfp's forty lines."""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dit.console import Progress, console, progress
from dit.console.formatting import format_duration
from dit.console.streams import user_terminal
from dit.errors import DitError, FinalError, InputError, printable
from dit.results.stages import TRAIN, run_of_step
from pipelines.cluster.pod_reason import killed_by
from pipelines.local.time_left import StudyClock
from pipelines.step.events import Event, from_line

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars

    from dit.console.bars import Bar

_TAIL = 5
_KINDS: dict[int, type[DitError]] = {kind.exit_code: kind for kind in (InputError, FinalError)}


@dataclass
class _Step:
    """The step that a worker runs."""

    name: str = "the first step"
    started: float = 0.0
    message: str = ""
    error: Event | None = None
    killed: int = 0
    """Number of the signal that ended it."""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL))
    bars: _Row | _PlainBars | None = None
    done: int = 0
    total: int = 0
    """Units of its newest bar."""


def open_log(path: Path) -> TextIO:
    """The log at this path, to append to: the log of an interrupted run is kept."""
    log = open(path, "a")  # noqa: SIM115  the caller closes it
    log.write(f"{datetime.now().isoformat(timespec='seconds')} {shlex.join(sys.argv)}\n")
    return log


class StudyLog:
    """Writes all output of the workers to a log, and shows the events of their steps. A context manager."""

    def __init__(self, log: TextIO, total: int, clock: StudyClock | None = None) -> None:
        """`total` is the number of steps; with a `clock`, the time left for all of them is shown, too."""
        self._log, self._total, self._clock = log, total, clock
        self._whole: Bar | None = None
        self._screen = console()
        self._steps: dict[int, _Step] = {}
        self._begun = self._ended = 0
        self._bars: RichBars | None = None
        self._stack = ExitStack()

    def __enter__(self) -> StudyLog:
        terminal = user_terminal()
        if terminal is not None:
            from dit.console.bars import Bar, MultiBar  # loads rich's bars, needed only on a terminal

            self._bars = self._stack.enter_context(MultiBar(transient=True).drawn(terminal))
            if self._clock is not None:
                self._whole = Bar(self._bars, "the whole study")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, worker: int, line: str) -> None:
        """Log one line of a worker's output, and show it if it is an event."""
        step = self._steps.setdefault(worker, _Step())
        event = from_line(line)
        if event is None:
            self._note(worker, step, line)
        elif event.kind in ("open", "advance", "close"):
            if step.bars is not None:
                step.bars.show(event)
            self._count(step, event)
        else:
            self._write(worker, f"{event.kind}: {event.text or event.code}")
            self._show(worker, step, event)

    def _count(self, step: _Step, event: Event) -> None:
        """Tell the clock how much of a training is done; only a training has one bar for the whole step."""
        if self._clock is None or not step.name.startswith(TRAIN.name):
            return
        if event.kind == "open":
            step.done, step.total = event.completed, event.count
        elif event.kind == "advance":
            step.done += event.count
        if step.total:
            self._clock.advance(step.name, step.done / step.total)
        self._show_left()

    def _show_left(self) -> None:
        if self._whole is not None:
            self._whole.advance(0, done=f"{self._ended} of {self._total} steps", left=self._left() or "not known yet")

    def _left(self) -> str:
        """Time left for the whole study; empty while it is not known."""
        left = self._clock.left(time.monotonic()) if self._clock is not None else None
        return "" if left is None else f"about {format_duration(max(left, 1.0))}"

    def failure(self, worker: int, log: str, exit_code: int = 0) -> DitError:
        """The error, in one line, of a worker that ended early; `log` is the path of the full output.

        `exit_code` is the worker's own, negative for a signal.
        """
        step = self._steps.get(worker, _Step())
        if step.error is not None:
            return _KINDS.get(step.error.code, DitError)(step.error.text)
        if number := step.killed or max(0, -exit_code):
            return DitError(f"{step.name} {killed_by(number)}; full output: {log}")
        last = step.tail[-1] if step.tail else "nothing"
        return DitError(f"{step.name} ended early; its last output: {last}; full output: {log}")

    def exit_code(self, worker: int) -> int:
        """The exit code that a worker's step reported with its error; 0 without an error."""
        error = self._steps.get(worker, _Step()).error
        return error.code if error is not None else 0

    def failed_run(self, worker: int) -> str:
        """Name of the run whose step a worker does."""
        return run_of_step(self._steps.get(worker, _Step()).name)

    def give_up(self, worker: int) -> None:
        """Show the error of a worker's step, which ends its run; the others go on."""
        step = self._steps[worker]
        if step.bars is not None:
            step.bars.end()
        if self._clock is not None:
            self._clock.drop(run_of_step(step.name))
        message = step.error.text if step.error is not None else step.name
        for on_terminal in (False, True):
            self._print(f"✗ {message}; the others go on", on_terminal=on_terminal)
        self._steps[worker] = _Step()

    def _note(self, worker: int, step: _Step, line: str) -> None:
        self._write(worker, line)
        # kfp indents the output of steps, and adds time-stamped lines of its own.
        if line.startswith("    ") and line.strip() and "[KFP Executor" not in line:
            step.tail.append(line.strip())

    def _write(self, worker: int, line: str) -> None:
        self._log.write(f"{worker}| {printable(line)}\n" if line else "\n")

    def _show(self, worker: int, step: _Step, event: Event) -> None:
        if event.kind == "begin":
            if step.error is not None:
                self.give_up(worker)
            self._begun += 1
            bars = _Row(self._bars, event.text) if self._bars else _PlainBars(event.text)
            self._steps[worker] = _Step(event.text, time.monotonic(), bars=bars)
            if self._clock is not None:
                self._clock.begin(event.text, time.monotonic())
            self._print(f"{self._place(self._begun)} {event.text}", on_terminal=False)
        elif event.kind == "line":
            # On a terminal the bar suffices; the last message is shown when the step ends.
            step.message = event.text
            self._print(f"{self._indent()} {step.name}: {event.text}", on_terminal=False)
        elif event.kind == "end":
            self._ended += 1
            if step.bars is not None:
                step.bars.end()
            took = format_duration(time.monotonic() - step.started)
            if self._clock is not None:
                self._clock.end(step.name, time.monotonic())
            left = self._left() if self._ended < self._total else ""
            rest = f", {left} left for the study" if left else ""
            self._print(f"{self._indent()} {step.name}: done in {took}{rest}", on_terminal=False)
            self._show_left()
            line = f"✓ {self._place(self._ended)} {step.name:<22} {took:>8}  {step.message}"
            self._print(line, on_terminal=True)
        elif event.kind == "error":
            step.error = event
        elif event.kind == "killed":
            step.killed = event.code

    def _print(self, line: str, *, on_terminal: bool) -> None:
        if self._screen.is_terminal != on_terminal:
            return
        line = printable(line)
        if not on_terminal:
            self._screen.out(line, highlight=False)
        else:
            # The bars' console prints above the bars.
            screen = self._bars.console if self._bars is not None else self._screen
            screen.print(line, markup=False, no_wrap=True, overflow="ellipsis")

    def _place(self, number: int) -> str:
        return f"{number:>{len(str(self._total))}}/{self._total}"

    def _indent(self) -> str:
        return " " * len(self._place(0))


class _Row:
    """A step's bars on a terminal: one row with the newest."""

    def __init__(self, bars: RichBars, step: str) -> None:
        from dit.console.bars import Bar

        self._step, self._newest = step, -1
        self._row = Bar(bars, step)

    def show(self, event: Event) -> None:
        if event.kind == "open":
            self._newest = event.bar
            self._row.begin(_named(event.text, self._step), event.count, event.unit, event.completed)
        elif event.kind == "advance" and event.bar == self._newest:
            self._row.advance(event.count, **event.info)

    def end(self) -> None:
        self._row.remove()


class _PlainBars:
    """A step's bars without a terminal: a line from time to time."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._open: dict[int, tuple[ExitStack, Progress]] = {}

    def show(self, event: Event) -> None:
        if event.kind == "open":
            stack = ExitStack()
            shown = progress(_named(event.text, self._step), event.count, event.unit, event.completed)
            self._open[event.bar] = stack, stack.enter_context(shown)
        elif event.bar in self._open and event.kind == "advance":
            self._open[event.bar][1].advance(event.count, **event.info)
        elif event.bar in self._open:
            self._open.pop(event.bar)[0].close()

    def end(self) -> None:
        self._open.clear()


def _named(description: str, step: str) -> str:
    # With the step's name: several steps run at the same time.
    run = run_of_step(step) or step
    return description if run in description else f"{step}: {description}"
