"""Events that a step reports to its parent: JSON lines in its output, marked by their first character."""

from __future__ import annotations

import io
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from typing import Literal, TextIO

from dit.console import progress_shown_by
from dit.console.streams import LineBuffer, TolerantStream

_SIGN = "\x1e"
_ADVANCE_SECONDS = 0.25
"""Minimum time between two events of a bar: the refresh interval of the terminal."""


@dataclass(frozen=True)
class Event:
    """An event of a step.

    The step began, printed a line, reported an error or ended well; or one of its bars, numbered by `bar`, was opened,
    advanced or closed. `killed`, `failed` and `ready` come from a worker: a signal ended its step, its part of the
    study failed, or it waits for work.
    """

    kind: Literal["begin", "line", "error", "end", "open", "advance", "close", "killed", "failed", "ready"]
    text: str = ""
    """Name of the step, the line, the error message, or the description of the bar."""
    code: int = 0
    """Exit code of an error; number of the signal that ended a step."""
    bar: int = 0
    """Number of the bar within the step."""
    count: int = 0
    """Total of the bar when it is opened; then the units by which it advanced."""
    completed: int = 0
    """Units done before the bar was opened."""
    unit: str = ""
    info: dict[str, float | str] = field(default_factory=dict)
    """Values shown beside the bar."""

    def to_line(self) -> str:
        """The event as a line of output."""
        return _SIGN + json.dumps({key: value for key, value in asdict(self).items() if value}) + "\n"


def from_line(line: str) -> Event | None:
    """The event in a line of output; None if the line is not an event."""
    _, sign, tail = line.partition(_SIGN)
    return Event(**json.loads(tail)) if sign else None


class Speaker:
    """Writes events, from any thread; writes nothing once the parent is gone."""

    def __init__(self, output: TextIO) -> None:
        self._output = TolerantStream(output)
        self._lock = threading.Lock()
        self._bars = itertools.count()

    def tell(self, event: Event) -> None:
        """Write one event and flush."""
        with self._lock:
            self._output.write(event.to_line())
            self._output.flush()

    @contextmanager
    def bar(self, description: str, total: int, unit: str, completed: int) -> Iterator[_Bar]:
        """Report a progress bar while the body runs; see `dit.console.progress`."""
        number = next(self._bars)
        self.tell(Event("open", description, bar=number, count=total, completed=completed, unit=unit))
        bar = _Bar(self, number)
        yield bar
        # Reached only on success: the bar of failed work stays open.
        bar.flush()
        self.tell(Event("close", bar=number))


class _Bar:
    """Collects progress until the next event is due."""

    def __init__(self, speaker: Speaker, number: int) -> None:
        self._speaker, self._number = speaker, number
        self._lock = threading.Lock()
        self._count = 0
        self._info: dict[str, float | str] = {}
        self._sent = 0.0

    def advance(self, n: int = 1, **info: float | str) -> None:
        with self._lock:
            self._count += n
            self._info.update(info)
            if time.monotonic() - self._sent >= _ADVANCE_SECONDS:
                self._send()

    def flush(self) -> None:
        with self._lock:
            if self._count or self._info:
                self._send()

    def _send(self) -> None:
        self._speaker.tell(Event("advance", bar=self._number, count=self._count, info=self._info))
        self._count, self._info, self._sent = 0, {}, time.monotonic()


@contextmanager
def spoken(step: str, announced: bool = True) -> Iterator[Speaker]:
    """Turn output and progress of the body into events, between `begin` and `end` if it is `announced`."""
    speaker = Speaker(sys.stdout)
    if announced:
        speaker.tell(Event("begin", step))
    lines = _Lines(speaker)
    with redirect_stdout(lines), redirect_stderr(lines), progress_shown_by(speaker.bar):
        yield speaker
        lines.finish()
    if announced:
        speaker.tell(Event("end", step))


class _Lines(io.TextIOBase):
    """A text stream that writes whole lines as events."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker, self._buffer = speaker, LineBuffer()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._report(self._buffer.add(text.encode(errors="replace")))
        return len(text)

    def finish(self) -> None:
        """Write the last line if it has no line break."""
        self._report(self._buffer.finish())

    def _report(self, lines: Iterable[str]) -> None:
        for line in lines:
            if line.strip():
                self._speaker.tell(Event("line", line.rstrip()))
