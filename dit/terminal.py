"""Progress bars on a terminal, drawn by rich. Loaded only where there is a terminal. Torch-free."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from dit.formatting import format_count, format_duration, format_info, format_rate
from dit.streams import TolerantStream

_RATE_WINDOW_SECONDS = 300.0


class _Display:
    """All bars of this process, on one terminal: rich cannot draw two sets of bars at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: Progress | None = None
        self._active = 0

    @contextmanager
    def bar(self, terminal: TextIO, description: str, total: int, unit: str, completed: int) -> Iterator[_Bar]:
        """Show a bar for as long as the body runs; see `dit.console.progress`."""
        with self._lock:
            if self._bars is None:
                self._bars = _new_bars(terminal)
                self._bars.start()
            self._active += 1
            bars = self._bars
            task = bars.add_task(description, total=total, completed=completed, unit=unit, info="")
        try:
            yield _Bar(bars, task)
        finally:
            with self._lock:
                bars.stop_task(task)
                self._active -= 1
                if not self._active:
                    bars.stop()
                    self._bars = None


class _Bar:
    """One bar; rich's own lock makes it safe between threads."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task
        self._info: dict[str, float | str] = {}

    def advance(self, n: int = 1, **info: float | str) -> None:
        if info:
            self._info = {**self._info, **info}
            self._bars.update(self._task, info="  ".join(format_info(self._info)))
        self._bars.advance(self._task, n)


class _TerminalConsole(Console):
    """A console that leaves the cursor alone: a process that is killed could not bring a hidden one back."""

    def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002
        """Does nothing; False as for a terminal without a cursor."""
        return False


class _Computed(ProgressColumn):
    """A column whose text is a function of the task."""

    def __init__(self, text: Callable[[Task], str], style: str, layout: Column | None = None) -> None:
        super().__init__(layout or Column(no_wrap=True))
        self._text, self._style = text, style

    def render(self, task: Task) -> Text:
        return Text(self._text(task), style=self._style, no_wrap=True)


def _new_bars(terminal: TextIO) -> Progress:
    console = _TerminalConsole(file=cast(TextIO, TolerantStream(terminal)), force_terminal=True, highlight=False)
    if terminal is not sys.stderr:
        # rich would measure this process's standard streams.
        with suppress(OSError):
            console.size = ConsoleDimensions(*os.get_terminal_size(terminal.fileno()))
    # Lines that are printed meanwhile go above the bars, but only if they go to the same terminal.
    shared = terminal is sys.stderr and sys.stdout is not None and sys.stdout.isatty()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        _Computed(_done, "none"),
        _Computed(_rate, "cyan"),
        _Computed(_left, "green"),
        # Where the terminal is narrow, this column alone gives way.
        _Computed(lambda task: str(task.fields["info"]), "dim", Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        expand=True,
        console=console,
        refresh_per_second=4,
        speed_estimate_period=_RATE_WINDOW_SECONDS,
        redirect_stdout=shared,
        redirect_stderr=terminal is sys.stderr,
    )


def _done(task: Task) -> str:
    return f"{format_count(int(task.completed))}/{format_count(int(task.total or 0))}"


def _rate(task: Task) -> str:
    speed = task.finished_speed or task.speed
    return format_rate(speed, str(task.fields["unit"])) if speed else ""


def _left(task: Task) -> str:
    if task.finished or task.stop_time is not None:
        return f"took {format_duration(task.elapsed or 0.0)}"
    return "" if task.time_remaining is None else f"{format_duration(task.time_remaining)} left"


display = _Display()
