"""What all tests of training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ports import reserved_port


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads; the setting must not outlive the tests of a module."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def port() -> Iterator[int]:
    """Where ranks that no launcher started meet."""
    with reserved_port() as number:
        yield number
