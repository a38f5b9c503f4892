"""Fixtures of the tests of tracking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked_study import end_shippers


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Another root, such as that of another machine."""
    yield tmp_path / "root"
    end_shippers(tmp_path)
