"""Progress bars on a terminal, drawn by rich. Loaded only where there is a terminal. Torch-free."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from dit.console.formatting import format_count, format_duration, format_info, format_rate
from dit.console.streams import TolerantStream

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


class Board:
    """Rows for work that goes on side by side in other processes, and lines above them.

    A context manager: the rows are gone from the terminal when it is left.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._bars = _new_bars(terminal, transient=True)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def row(self, text: str) -> Row:
        """A new row below the others, which says this and shows no numbers yet."""
        return Row(self._bars, text)

    def say(self, line: str) -> None:
        """Print a line above the rows, cut to the terminal's width."""
        self._bars.console.print(line, markup=False, no_wrap=True, overflow="ellipsis")


class Row:
    """One row of a board, for one bar after the other."""

    def __init__(self, bars: Progress, text: str) -> None:
        self._bars = bars
        self._task = bars.add_task(text, total=None, unit="", info="")
        self._bar = _Bar(bars, self._task)

    def begin(self, description: str, total: int, unit: str, completed: int) -> None:
        """Show a bar of `total` units, of which an earlier run did `completed`."""
        self._bars.reset(self._task, description=description, total=total, completed=completed, unit=unit, info="")
        self._bar = _Bar(self._bars, self._task)

    def advance(self, n: int, **info: float | str) -> None:
        """As a bar's."""
        self._bar.advance(n, **info)

    def remove(self) -> None:
        """Take the row away."""
        self._bars.remove_task(self._task)
        self._bars.refresh()


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


def _new_bars(terminal: TextIO, *, transient: bool = False) -> Progress:
    console = _TerminalConsole(file=cast(TextIO, TolerantStream(terminal)), force_terminal=True, highlight=False)
    # Lines that are printed meanwhile go above the bars, but only if they go to the same terminal.
    shared = sys.stdout is not None and sys.stdout.isatty()
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
        transient=transient,
        refresh_per_second=4,
        speed_estimate_period=_RATE_WINDOW_SECONDS,
        redirect_stdout=shared,
    )


def _done(task: Task) -> str:
    return "" if task.total is None else f"{format_count(int(task.completed))}/{format_count(int(task.total))}"


def _rate(task: Task) -> str:
    speed = task.finished_speed or task.speed
    return format_rate(speed, str(task.fields["unit"])) if speed else ""


def _left(task: Task) -> str:
    if task.total is None:
        return f"{format_duration(task.elapsed or 0.0)}"
    if task.finished or task.stop_time is not None:
        return f"took {format_duration(task.elapsed or 0.0)}"
    return "" if task.time_remaining is None else f"{format_duration(task.time_remaining)} left"


display = _Display()
