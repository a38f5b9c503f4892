"""Tests for a machine with a CUDA device: `make test-gpu`."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _has_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.exit("no CUDA device here; run `make test-gpu` on a machine that has one", returncode=2)


@pytest.fixture
def gpu() -> torch.device:
    """The first device, whose peak of memory counts from here."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.device("cuda", 0)
