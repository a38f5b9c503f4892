"""Python processes for tests, and the temporary files that a killed one may leave."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process on this code, with pipes for its standard streams."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def partial_files(root: Path) -> list[Path]:
    """Files below `root` that are being written."""
    return list(root.rglob(".*.partial"))
