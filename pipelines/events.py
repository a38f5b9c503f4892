"""What a step tells its starter: JSON lines among its output, known by their first character."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from typing import Literal, TextIO

_SIGN = "\x1e"


@dataclass(frozen=True)
class Event:
    """A step began, said a line, failed for a reason that it knows, or ended well."""

    kind: Literal["begin", "line", "error", "end"]
    text: str = ""
    code: int = 0
    """Exit code of an error."""

    def to_line(self) -> str:
        """One line of output."""
        return _SIGN + json.dumps(asdict(self)) + "\n"


def from_line(line: str) -> Event | None:
    """The event in a line of a step's output, None for a line of anything else."""
    _, sign, tail = line.partition(_SIGN)
    return Event(**json.loads(tail)) if sign else None


@contextmanager
def spoken(step: str) -> Iterator[TextIO]:
    """Turn all that Python prints inside the body into events, framed by begin and end; yields the raw output."""
    output = sys.stdout
    _emit(output, Event("begin", step))
    lines = _Lines(output)
    with redirect_stdout(lines), redirect_stderr(lines):
        yield output
        lines.finish()
    _emit(output, Event("end", step))


def emit_error(output: TextIO, text: str, code: int) -> None:
    """Tell the starter why the step fails."""
    _emit(output, Event("error", text, code))


def _emit(output: TextIO, event: Event) -> None:
    output.write(event.to_line())
    output.flush()


class _Lines(io.TextIOBase):
    """A text stream that passes whole lines on as events."""

    def __init__(self, output: TextIO) -> None:
        self._output, self._rest = output, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                _emit(self._output, Event("line", line.rstrip()))
        return len(text)

    def finish(self) -> None:
        """Pass on a last line that had no end."""
        if self._rest:
            self.write("\n")
