"""Standard streams and terminals, which may be missing or go away without harm to the work. Torch-free."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, TextIO


class TolerantStream:
    """A text stream that goes quiet when its terminal or pipe is gone, and writes `?` for what its encoding lacks.

    Everything but writing is the stream's own. None, which Python has for a stream that was closed, is quiet too.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or _nowhere()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream's own."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "replace").decode(encoding))
        except OSError:
            self._mute()
            return len(text)

    def flush(self) -> None:
        """As the stream's own."""
        try:
            self._stream.flush()
        except OSError:
            self._mute()

    def _mute(self) -> None:
        # Python flushes standard streams once more at exit; what is left in them must not fail then.
        with suppress(OSError):
            os.dup2(_nowhere().fileno(), self._stream.fileno())


@lru_cache(maxsize=1)
def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def user_terminal() -> TextIO | None:
    """Where bars can be drawn: stderr if it is a terminal that can do it, else nowhere."""
    if os.environ.get("TERM") in ("dumb", "unknown"):
        return None
    return sys.stderr if is_terminal(sys.stderr) else None


def is_terminal(stream: TextIO | None) -> bool:
    """Whether people look at what is written there."""
    return stream is not None and not stream.closed and stream.isatty()


class LineBuffer:
    """Cuts what comes piece by piece into whole lines."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[str]:
        """The lines that are whole now, without their ends."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def finish(self) -> list[str]:
        """A last line that has no end, if there is one."""
        return self.add(b"\n") if self._rest else []


def whole_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a stream that comes piece by piece, the last one with or without an end."""
    buffer = LineBuffer()
    for chunk in chunks:
        yield from buffer.add(chunk)
    yield from buffer.finish()
