"""A terminal for the tests that look at what is drawn on one."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest


@dataclass
class Terminal:
    """A terminal of 100 columns, and what has been drawn on it."""

    slave: int
    drawn: bytearray
    reader: threading.Thread

    @property
    def name(self) -> str:
        return os.ttyname(self.slave)

    def show(self, code: str, *shown: str) -> str:
        """What a program has drawn that goes on after `input()` when all these patterns are drawn, and ends."""
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=self.slave,
            stderr=self.slave,
            env={**os.environ, "TERM": "xterm"},
        )
        while process.poll() is None and not all(re.search(pattern, self._plain()) for pattern in shown):
            time.sleep(0.05)
        process.communicate(b"\n")
        assert process.returncode == 0, self._plain()
        return self.text()

    def text(self) -> str:
        """All that was drawn so far, without colours."""
        os.close(self.slave)
        self.reader.join()
        return self._plain()

    def _plain(self) -> str:
        text = bytes(self.drawn).decode(errors="replace")
        return re.sub(r"\x1b\[[0-9;]*[mKA]", "", text).replace("\r", "\n")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    master, slave = pty.openpty()
    subprocess.run(["stty", "cols", "100", "rows", "30"], stdin=slave, check=True)
    drawn = bytearray()

    def read() -> None:
        # Linux ends with an error when the last writer is gone.
        with suppress(OSError):
            while chunk := os.read(master, 1 << 16):
                drawn.extend(chunk)

    # It reads all the time: a program that draws longer than the terminal can hold would wait for ever.
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    yield Terminal(slave, drawn, reader)
    with suppress(OSError):
        os.close(slave)
    reader.join()
    os.close(master)
