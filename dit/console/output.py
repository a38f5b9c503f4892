"""The output of commands: lines, tables and progress. An output error never fails the work. Torch-free.

Results go to stdout, as plain text unless it is a terminal. Progress goes to stderr: bars on a terminal, else a plain
line from time to time. In a step of `dit study`, the orchestrator shows it instead. When the terminal or pipe closes,
output stops and the work continues.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO, cast

from dit.console.formatting import (
    ABSENT,
    format_count,
    format_duration,
    format_info,
    format_number,
    format_rate,
    format_share,
)
from dit.console.streams import TolerantStream, is_terminal, user_terminal
from dit.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

_LINE_SECONDS = 30.0
_LINE_FRACTION = 0.1
_SILENCE_SECONDS = 600.0
Cell = str | int | float | None


class Progress(Protocol):
    """The progress of one task. Thread-safe."""

    def advance(self, n: int = 1, **info: float | str) -> None:
        """Count `n` more units; `info`, such as loss=0.12, is shown beside them until its next value."""


OpenBar = Callable[[str, int, str, int], AbstractContextManager[Progress]]
"""Another way to show progress; takes the first four arguments of `progress`."""
_open_bar: OpenBar | None = None


def say(line: str = "") -> None:
    """Print one plain line to stdout and flush it; control characters are written as escapes."""
    stream = TolerantStream(sys.stdout)
    stream.write(f"{printable(line)}\n")
    stream.flush()


def console() -> Console:
    """A rich console on stdout: colours and boxes on a terminal, else plain text without line breaks."""
    from rich.console import Console

    stream = cast(TextIO, TolerantStream(sys.stdout))
    return Console(file=stream, highlight=False, soft_wrap=not is_terminal(sys.stdout))


@contextmanager
def progress_shown_by(open_bar: OpenBar) -> Iterator[None]:
    """While the body runs, `open_bar` shows all progress of this process."""
    global _open_bar
    before, _open_bar = _open_bar, open_bar
    try:
        yield
    finally:
        _open_bar = before


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], title: str | None = None) -> None:
    """Print a table to stdout. Numbers are formatted and aligned to the right; None is a dash."""
    cells = [[cell_text(value) for value in row] for row in rows]
    right = [bool(rows) and not any(isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    if not is_terminal(sys.stdout):
        for line in _plain_table([list(columns), *cells], right, title):
            say(line)
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    for name, to_right in zip(columns, right, strict=True):
        drawn.add_column(name, justify="right" if to_right else "left")
    for row in cells:
        drawn.add_row(*map(Text, row))
    console().print(drawn)


@contextmanager
def progress(
    description: str, total: int, unit: str, completed: int = 0, *, enabled: bool = True
) -> Iterator[Progress]:
    """Show the progress of a task while the body runs.

    An earlier run did `completed` units, which do not count for the rate. All ranks but the first pass `enabled=False`.
    """
    terminal = user_terminal()
    if not enabled:
        yield _Silent()
    elif _open_bar is not None:
        with _open_bar(description, total, unit, completed) as bar:
            yield bar
    elif terminal is not None:
        from dit.console.bars import display  # rich, which is imported only for a terminal

        with display.bar(terminal, description, total, unit, completed) as bar:
            yield bar
    else:
        lines = _Lines(description, total, unit, completed)
        yield lines
        lines.finish()


class _Silent:
    def advance(self, n: int = 1, **info: float | str) -> None:
        pass


class _Lines:
    """Progress as plain lines: one per tenth, at least 30 s apart, one after 10 minutes of silence, one at the end."""

    def __init__(self, description: str, total: int, unit: str, completed: int) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._first = self._done = self._printed = completed
        self._start = self._last_line = time.monotonic()
        self._info: dict[str, float | str] = {}
        self._lock = threading.Lock()

    def advance(self, n: int = 1, **info: float | str) -> None:
        with self._lock:
            self._done += n
            self._info.update(info)
            silence = time.monotonic() - self._last_line
            a_tenth_on = self._done - self._printed >= _LINE_FRACTION * self._total
            if silence >= _SILENCE_SECONDS or (a_tenth_on and silence >= _LINE_SECONDS):
                self._print(last=False)

    def finish(self) -> None:
        with self._lock:
            if self._done > self._first:
                self._print(last=True)

    def _print(self, last: bool) -> None:
        now = time.monotonic()
        self._last_line, self._printed = now, self._done
        elapsed = max(now - self._start, 1e-9)
        rate = (self._done - self._first) / elapsed
        parts = [format_share(self._done, self._total, self._unit), format_rate(rate, self._unit)]
        if last:
            parts.append(f"took {format_duration(elapsed)}")
        elif rate > 0 and self._done < self._total:
            parts.append(f"{format_duration((self._total - self._done) / rate)} left")
        parts.extend(format_info(self._info))
        stream = TolerantStream(sys.stderr)
        stream.write(f"{self._description}: {', '.join(parts)}\n")
        stream.flush()


def cell_text(value: Cell) -> str:
    """The text of a table's cell."""
    if value is None:
        return ABSENT
    if isinstance(value, str):
        return printable(value)
    return format_count(value) if isinstance(value, int) else format_number(value)


def _plain_table(rows: Sequence[Sequence[str]], right: Sequence[bool], title: str | None) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(right))]
    if title:
        yield title
    for row in rows:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        yield "  ".join(padded).rstrip()
