"""A terminal for the tests that look at what is drawn on one."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


@dataclass
class Terminal:
    """A terminal of 100 columns, and what has been drawn on it."""

    master: int
    slave: int

    @property
    def name(self) -> str:
        return os.ttyname(self.slave)

    def text(self) -> str:
        """All that was drawn so far, without colours."""
        os.close(self.slave)
        drawn = b""
        while True:
            try:
                chunk = os.read(self.master, 1 << 16)
            except OSError:  # Linux's way to say that the last writer is gone
                break
            if not chunk:
                break
            drawn += chunk
        return re.sub(r"\x1b\[[0-9;]*[mKA]", "", drawn.decode()).replace("\r", "\n")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    master, slave = pty.openpty()
    os.set_blocking(master, True)
    subprocess.run(["stty", "cols", "100", "rows", "30"], stdin=slave, check=True)
    yield Terminal(master, slave)
    os.close(master)
