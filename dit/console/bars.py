"""Progress bars on a terminal, drawn by rich. Imported only if there is a terminal. Torch-free."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from dit.console.formatting import format_count, format_duration, format_info, format_rate
from dit.console.streams import TolerantStream

_RATE_WINDOW_SECONDS = 300.0


class MultiBar:
    """All bars of a terminal, for tasks that run at the same time: rich cannot draw two sets of bars at once.

    They are drawn while any `drawn` context is open. With `transient` they are removed afterwards.
    """

    def __init__(self, *, transient: bool = False) -> None:
        self._transient = transient
        self._lock = threading.Lock()
        self._bars: Progress | None = None
        self._users = 0

    @contextmanager
    def drawn(self, terminal: TextIO) -> Iterator[Progress]:
        """Draw the bars while this context, or one that overlaps it, is open."""
        with self._lock:
            if self._bars is None:
                self._bars = _new_bars(terminal, transient=self._transient)
                self._bars.start()
            self._users += 1
            bars = self._bars
        try:
            yield bars
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    bars.stop()
                    self._bars = None

    @contextmanager
    def bar(self, terminal: TextIO, description: str, total: int, unit: str, completed: int) -> Iterator[Bar]:
        """Show a bar while the body runs; the arguments are those of `dit.console.progress`."""
        with self.drawn(terminal) as bars:
            bar = Bar(bars, description)
            bar.begin(description, total, unit, completed)
            try:
                yield bar
            finally:
                bar.stop()


class Bar:
    """A row of bars, one after the other. Thread-safe by rich's own lock."""

    def __init__(self, bars: Progress, text: str) -> None:
        self._bars = bars
        self._task = bars.add_task(text, total=None, unit="", info="")
        self._info: dict[str, float | str] = {}

    def begin(self, description: str, total: int, unit: str, completed: int) -> None:
        """Show a bar of `total` units, of which an earlier run did `completed`; before it the row has no numbers."""
        self._info = {}
        self._bars.reset(self._task, description=description, total=total, completed=completed, unit=unit, info="")

    def advance(self, n: int = 1, **info: float | str) -> None:
        """Count `n` more units; `info` is shown beside them."""
        if info:
            self._info = {**self._info, **info}
            self._bars.update(self._task, info="  ".join(format_info(self._info)))
        self._bars.advance(self._task, n)

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._bars.stop_task(self._task)

    def remove(self) -> None:
        """Remove the row."""
        self._bars.remove_task(self._task)
        self._bars.refresh()


class _TerminalConsole(Console):
    """A console that never hides the cursor: it would stay hidden after a kill."""

    def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002
        """False, as for a terminal without a cursor; does nothing."""
        return False


class _Computed(ProgressColumn):
    """A column whose text is a function of the task."""

    def __init__(self, text: Callable[[Task], str], style: str, layout: Column | None = None) -> None:
        super().__init__(layout or Column(no_wrap=True))
        self._text, self._style = text, style

    def render(self, task: Task) -> Text:
        return Text(self._text(task), style=self._style, no_wrap=True)


def _new_bars(terminal: TextIO, *, transient: bool) -> Progress:
    console = _TerminalConsole(file=cast(TextIO, TolerantStream(terminal)), force_terminal=True, highlight=False)
    # rich prints lines above the bars if stdout is the same terminal.
    shared = sys.stdout is not None and sys.stdout.isatty()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        _Computed(_done, "none"),
        _Computed(_rate, "cyan"),
        _Computed(_left, "green"),
        # On a narrow terminal, only this column is cut.
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


display = MultiBar()
"""All bars of this process."""
