"""Process settings for speed without loss of accuracy: allocator, threads, matrix precision; and the peak FLOP/s."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import shutil
import sys
import sysconfig
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path

import torch

from dit.errors import ConfigError
from dit.planning.accelerators import data_sheet_peak
from dit.runtime.distributed import Ranks
from dit.study.config import FitConfig
from dit.study.fields import Precision

# glibc's mallopt parameters (malloc.h). A block above M_MMAP_THRESHOLD is mapped by itself, and unmapped when freed.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT_BYTES = 1 << 30
_OLD_GLIBC_LIMIT = 32 << 20  # largest M_MMAP_THRESHOLD of glibc before 2.35
_TOP_PAD_BYTES = 64 << 20

# The relative error of a 512-term product is 1e-7 to 1e-6 in float32, and 1e-3 if the operands are rounded to bf16.
_FP32_ERROR = 1e-5
_PEAK_RESET = Path("/proc/self/clear_refs")
"""Writing 5 makes the peak memory of the process its present memory (proc(5))."""
_PROBE_SIDE = 512


def tune_process(threads: int | None = None) -> None:
    """Configure the memory allocator and, with `threads`, the number of CPU threads. May be called repeatedly."""
    # Each step frees and allocates the same large blocks. By default glibc returns them to the kernel, and every page
    # faults again; if glibc keeps them, a step on a CPU takes up to half less time. Other C libraries have no mallopt.
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
    _forget_earlier_stage()


def _forget_earlier_stage() -> None:
    """Undo what a stage that this process ran before has set, compiled and left on the GPU."""
    # torch's own settings: features are computed with them, and their numbers must not depend on an earlier training.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    gc.collect()
    with suppress(OSError):
        _PEAK_RESET.write_text("5")
    # Else all compiled models of a process count against one limit, after which dynamo compiles no more.
    if (dynamo := sys.modules.get("torch._dynamo")) is not None:
        dynamo.reset()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_process_bytes() -> int:
    """The most bytes of memory that this process has had since `tune_process`, or without procfs since its start."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def matmul_precision(precision: Precision, device: torch.device) -> None:
    """Set how this process computes float32 matrix products.

    On CUDA, tf32 and bf16 allow TF32 products and fp32 forbids them. On a CPU, products keep float32's accuracy unless
    `precision` is bf16.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        return
    # "medium" selects oneDNN's kernels, twice as fast as the default's with AVX-512. On a CPU with AMX they round the
    # operands to bf16, so fp32 and tf32 keep the default there.
    rounds = computed_in(precision, device) == "bf16"
    torch.set_float32_matmul_precision("medium" if rounds or medium_is_exact() else "highest")


@lru_cache(maxsize=1)
def medium_is_exact() -> bool:
    """Return whether "medium" products keep float32's accuracy on this CPU, measured on one product."""
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
    """Return the precision in which this device computes when the study asks for `precision`.

    It is fp32 instead of bf16 on a CPU without bf16 kernels, where bf16 products would be tens of times slower.
    """
    return "fp32" if precision == "bf16" and device.type == "cpu" and not cpu_has_bf16() else precision


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Return whether oneDNN has bf16 kernels for this CPU: x86 with AVX-512 or newer, ARM with the BF16 extension."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return bf16 autocast if the device computes in bf16, otherwise a context without effect."""
    if computed_in(precision, device) != "bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def hardware(device: torch.device) -> str:
    """Return what decides the last bit of a computation: the GPU, or the CPU's instructions and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def can_compile() -> bool:
    """Return whether there are a C++ compiler and Python headers, which torch.compile needs on CPUs and GPUs."""
    compilers = (os.environ.get("CXX", ""), "g++", "c++", "clang++")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return headers.exists() and any(shutil.which(name) for name in compilers if name)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the measured FLOP/s of a large square product at the current matrix precision, the best of several."""
    side, repeats = (8192, 10) if device.type == "cuda" else (1024, 20)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    # side^3 multiply-accumulates, two FLOPs each.
    return 2 * side**3 / best


@lru_cache(maxsize=4)
def peak_flops(device: torch.device, precision: Precision = "bf16") -> float:
    """Return the peak FLOP/s for model FLOPs utilisation: from the data sheet of a known GPU, otherwise measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if peak := data_sheet_peak(name, precision):
            return peak
    return matmul_peak(device, torch.bfloat16 if computed_in(precision, device) == "bf16" else torch.float32)


def compiles(fit: FitConfig, ranks: Ranks) -> bool:
    """Return whether torch.compile is used; `fit.compile=auto` uses it on GPUs.

    Raises ConfigError when `fit.compile=on` and there is no compiler.
    """
    if fit.compile == "on" and not can_compile():
        raise ConfigError("fit.compile=on needs a C++ compiler (CXX or g++) on the PATH; install one or choose auto")
    return fit.compile == "on" or (fit.compile == "auto" and ranks.device.type == "cuda" and can_compile())
