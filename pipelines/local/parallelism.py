"""How many runs this machine trains at a time, and on how many threads each. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dit.study.config import FitConfig

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Share:
    """Worker processes, and the threads of each. None leaves the threads to the user's setting or to torch."""

    workers: int
    threads: int | None


def share(fit: FitConfig, runs: int, cores: int, has_gpu: bool, environment: Mapping[str, str] = os.environ) -> Share:
    """How the `runs` that are not complete share this machine.

    `fit.parallel_variants` sets the number of workers. Without it there is one worker if the machine has a GPU, because
    a stage uses all GPUs, and otherwise one per core: a model that is small enough for a CPU gains little from a second
    thread. `fit.threads`, then OMP_NUM_THREADS, set the number of threads.
    """
    threads = fit.threads or _set_threads(environment)
    fitting = 1 if has_gpu else cores // (threads or 1)
    workers = max(1, min(fit.parallel_variants or fitting, runs))
    return Share(workers, None if threads or workers == 1 else max(1, cores // workers))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _set_threads(environment: Mapping[str, str]) -> int | None:
    # OpenMP accepts a list, one number per level of nesting.
    first = environment.get(THREADS, "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else None


def has_gpu() -> bool:
    """True if torch is likely to find a GPU: NVIDIA's or AMD's driver is loaded. Does not import torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists() or Path("/dev/dxg").exists()
