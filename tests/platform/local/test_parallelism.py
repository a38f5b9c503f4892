"""How many variants this machine trains at a time, and on how many threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dit.study.config import FitConfig
from pipelines.local.parallelism import Share, has_gpu, share


@pytest.mark.parametrize(
    ("cores", "variants", "expected"),
    [(1, 5, (1, None)), (2, 5, (2, 1)), (8, 3, (3, 2)), (64, 5, (5, 12)), (8, 1, (1, None)), (8, 0, (1, None))],
)
def test_variants_share_the_cores(cores: int, variants: int, expected: tuple[int, int | None]) -> None:
    assert share(FitConfig(), variants, cores, False, {}) == Share(*expected)


def test_a_gpu_is_used_by_one_variant_unless_the_study_sets_parallel_variants() -> None:
    assert share(FitConfig(), 5, 8, True, {}) == Share(1, None)
    assert share(FitConfig(parallel_variants=2), 5, 8, True, {}) == Share(2, 4)


@pytest.mark.parametrize(
    ("fit", "environment", "expected"),
    [
        ({"parallel_variants": 1}, "", (1, None)),
        ({"parallel_variants": 9}, "", (5, 1)),
        ({"threads": 4}, "", (2, None)),
        ({}, "3", (2, None)),
        ({}, "4,2", (2, None)),
        ({}, "many", (5, 1)),
    ],
)
def test_the_users_parallel_variants_and_threads_go_first(
    fit: dict[str, int], environment: str, expected: tuple[int, int | None]
) -> None:
    assert share(FitConfig(**fit), 5, 8, False, {"OMP_NUM_THREADS": environment}) == Share(*expected)


def test_only_the_cores_of_this_process_count() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from pipelines.local.parallelism import available_cores; print(available_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_the_user_hides_is_not_used(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not has_gpu()
