"""Standard streams and terminals that may be missing or close at any time. Torch-free."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, TextIO


class TolerantStream:
    """A text stream that never raises: after its terminal or pipe has closed, it writes nothing.

    Characters that its encoding lacks become `?`. It accepts None, which Python has for a closed standard stream.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or _nowhere()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Like the stream's own `write`."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "replace").decode(encoding))
        except OSError:
            self._mute()
            return len(text)

    def flush(self) -> None:
        """Like the stream's own `flush`."""
        try:
            self._stream.flush()
        except OSError:
            self._mute()

    def _mute(self) -> None:
        # Python flushes standard streams again at exit, which must not fail.
        with suppress(OSError):
            os.dup2(_nowhere().fileno(), self._stream.fileno())


@lru_cache(maxsize=1)
def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def user_terminal() -> TextIO | None:
    """stderr if it is a terminal that can draw bars, else None."""
    if os.environ.get("TERM") in ("dumb", "unknown"):
        return None
    return sys.stderr if is_terminal(sys.stderr) else None


def is_terminal(stream: TextIO | None) -> bool:
    """Whether this is an open terminal."""
    return stream is not None and not stream.closed and stream.isatty()


class LineBuffer:
    """Joins chunks of bytes into whole lines."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[str]:
        """The lines that this chunk completes, without line ends."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def finish(self) -> list[str]:
        """The last line, if it has no line end."""
        return self.add(b"\n") if self._rest else []


def whole_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a stream of chunks; the last one may lack its line end."""
    buffer = LineBuffer()
    for chunk in chunks:
        yield from buffer.add(chunk)
    yield from buffer.finish()
