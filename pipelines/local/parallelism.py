"""How many variants this machine works on at a time, and on how many threads each. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dit.study.config import FitConfig

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Share:
    """Worker processes, and the threads of each; None where the user has set them, or torch chooses best itself."""

    workers: int
    threads: int | None


def share(fit: FitConfig, variants: int, environment: Mapping[str, str] = os.environ) -> Share:
    """How `variants` that are not complete share this machine, unless `fit.parallel_variants` sets it.

    One worker where there is a GPU, all of which a stage uses. Else a worker per core: a model that is small enough to
    be trained on a CPU gains little from a second thread. The user's number of threads, from `fit.threads` or
    OMP_NUM_THREADS, goes first.
    """
    cores, threads = _cores(), fit.threads or _set_threads(environment)
    fitting = 1 if _has_gpu(environment) else cores // (threads or 1)
    workers = max(1, min(fit.parallel_variants or fitting, variants))
    return Share(workers, None if threads or workers == 1 else max(1, cores // workers))


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _set_threads(environment: Mapping[str, str]) -> int | None:
    # OpenMP takes a list, a number for each level of nesting.
    first = environment.get(THREADS, "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else None


def _has_gpu(environment: Mapping[str, str]) -> bool:
    """Whether torch is likely to find one, told without its import: by NVIDIA's or AMD's driver."""
    if environment.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists() or Path("/dev/dxg").exists()
