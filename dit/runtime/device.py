"""What this machine computes fastest without losing accuracy: allocator, threads, matrix precision; and its peak."""

from __future__ import annotations

import ctypes
import os
import shutil
import sysconfig
import time
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path

import torch

from dit.errors import ConfigError
from dit.planning.accelerators import data_sheet_peak
from dit.runtime.distributed import Ranks
from dit.study.config import FitConfig
from dit.study.fields import Precision

# glibc's mallopt parameters (malloc.h): above the threshold a block is mapped, and unmapped when freed.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT_BYTES = 1 << 30
_OLD_GLIBC_LIMIT = 32 << 20  # the most that glibc before 2.35 accepts for the mapping threshold
_TOP_PAD_BYTES = 64 << 20

# Relative error of a 512-term float32 product is 1e-7 to 1e-6; one that is rounded to bf16 inside, 1e-3.
_FP32_ERROR = 1e-5
_PROBE_SIDE = 512


def tune_process(threads: int | None = None) -> None:
    """Settle the allocator and the number of CPU threads; safe to call again.

    Each step frees and takes the same large blocks. glibc would return them to the kernel and fault them in again, page
    by page; told to keep them, a step on a CPU takes up to half less time. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        mallopt = None
    if mallopt is not None:
        if not mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES):
            mallopt(_M_MMAP_THRESHOLD, _OLD_GLIBC_LIMIT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)
    if threads is not None:
        torch.set_num_threads(threads)


def matmul_precision(precision: Precision, device: torch.device) -> None:
    """Choose how float32 matrix products are computed, for the whole process.

    On CUDA, tf32 and bf16 allow TF32 products and fp32 forbids them. On a CPU, "medium" reaches oneDNN's kernels, twice
    as fast as the default's where AVX-512 is; where it would round to bf16 inside, as with AMX, fp32 keeps the default.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        return
    rounds = computed_in(precision, device) == "bf16"
    torch.set_float32_matmul_precision("medium" if rounds or medium_is_exact() else "highest")


@lru_cache(maxsize=1)
def medium_is_exact() -> bool:
    """Whether this CPU's "medium" products keep float32's accuracy; measured on one product."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(_PROBE_SIDE, _PROBE_SIDE, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        error = (a @ b - exact).abs().max() / exact.abs().max()
    finally:
        torch.set_float32_matmul_precision(before)
    return float(error) < _FP32_ERROR


def computed_in(precision: Precision, device: torch.device) -> Precision:
    """The precision that this device computes in when asked for `precision`.

    bf16 gives way to fp32 on a CPU whose bf16 products would run in plain loops, tens of times slower.
    """
    return "fp32" if precision == "bf16" and device.type == "cpu" and not cpu_has_bf16() else precision


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Whether oneDNN has bf16 kernels for this CPU: on x86 from AVX-512 on, on ARM with its BF16 extension."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """bf16 autocast where it is asked for and the device computes in it, nothing otherwise."""
    if computed_in(precision, device) != "bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def can_compile() -> bool:
    """Whether torch.compile finds the C++ compiler and Python headers that it needs, on a CPU and a GPU alike."""
    compilers = (os.environ.get("CXX", ""), "g++", "c++", "clang++")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return headers.exists() and any(shutil.which(name) for name in compilers if name)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of large square products here and now: the best of several, under the process's matrix precision."""
    side, repeats = (8192, 10) if device.type == "cuda" else (1024, 20)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


@lru_cache(maxsize=4)
def peak_flops(device: torch.device, precision: Precision = "bf16") -> float:
    """FLOP/s that model FLOPs utilisation is a share of: a known GPU's data sheet, otherwise measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if peak := data_sheet_peak(name, precision):
            return peak
    return matmul_peak(device, torch.bfloat16 if computed_in(precision, device) == "bf16" else torch.float32)


def compiles(fit: FitConfig, ranks: Ranks) -> bool:
    """Whether torch.compile is used: with auto, on a GPU; ConfigError where it is asked for and cannot work."""
    if fit.compile == "on" and not can_compile():
        raise ConfigError("fit.compile=on needs a C++ compiler (CXX or g++) on the PATH; install one or choose auto")
    return fit.compile == "on" or (fit.compile == "auto" and ranks.device.type == "cuda" and can_compile())
