"""The version of this code, with the commit that it was built from."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from dit import __version__

VARIABLE = "DIT_REVISION"
"""Environment variable with the commit; images set it, because they have no repository."""

_CHECKOUT = Path(__file__).parents[2]
_GIT_SECONDS = 10


@cache
def code_version() -> str:
    """Such as `0.1.0+69f7c94`: with `.dirty` if the checkout has changes, without a commit if it is unknown."""
    revision = os.environ.get(VARIABLE) or _described()
    return f"{__version__}+{revision.replace('-', '.')}" if revision not in ("", "unknown") else __version__


def _described() -> str:
    # An installed package may be inside another project's repository: only a checkout of this one counts.
    if not (_CHECKOUT / ".git").exists():
        return ""
    command = ["git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
