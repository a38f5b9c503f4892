"""Accelerators: peak rates and memory from their data sheets. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dit.errors import ConfigError
from dit.study.config import DigitsSource, PlanConfig, StudyConfig
from dit.study.fields import Precision

CPU = "cpu"
TERA = 1e12
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device at one precision."""

    name: str
    peak: float
    """Dense matrix rate in true FLOP/s: a multiply-accumulate is two."""
    memory: float
    """Bytes."""


# Dense (no sparsity) TFLOP/s from NVIDIA's data sheets, by a part of the driver's name for the device. The first match
# counts, so H100 PCIe comes before H100.
_PEAKS: dict[str, dict[Precision, float]] = {
    "B200": {"bf16": 2250, "tf32": 1125, "fp32": 80},
    "H200": {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "H100 PCIe": {"bf16": 756, "tf32": 378, "fp32": 51},
    "H100": {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "A100": {"bf16": 312, "tf32": 156, "fp32": 19.5},
    "L40S": {"bf16": 362.1, "tf32": 183.2, "fp32": 91.6},
    "A10": {"bf16": 125, "tf32": 62.5, "fp32": 31.2},
    "V100": {"bf16": 125, "tf32": 15.7, "fp32": 15.7},
}
# GiB as nvidia-smi reports them, for the accelerators that `plan.accelerator` can name.
_MEMORY = {"A100-40G": 40.0, "A100-80G": 80.0, "H100-80G": 79.6, "H200-141G": 140.4, "L40S-48G": 45.0}
USABLE = 0.9
"""Share of the memory that a plan fills; the rest is for gaps of the allocator."""
_CORE_TFLOPS = 0.075
"""Rate of one core that makes a plan of `configs/digits.yaml` right at the default utilisation: one core of an AMD EPYC
with AVX2 trains its models at 30 GFLOP/s (README.md). Small models reach a small share of a core's peak."""
KNOWN = (*_MEMORY, CPU)


def data_sheet_peak(device_name: str, precision: Precision) -> float | None:
    """Peak in true FLOP/s of the device with this driver name; None for a device without a row here."""
    return next((peaks[precision] * TERA for chip, peaks in _PEAKS.items() if chip in device_name), None)


def machine(config: StudyConfig) -> PlanConfig:
    """The study's `plan`. A study of the digits that names no other machine is planned for the cores of this one."""
    chosen = "accelerator" in config.plan.model_fields_set and config.plan != PlanConfig()
    if chosen or not isinstance(config.dataset.source, DigitsSource):
        return config.plan
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    stated = {"accelerator": CPU, "count": cores, "peak_tflops": _CORE_TFLOPS, "memory_gib": _memory_gib() / cores}
    default = PlanConfig().model_dump()
    given = {key: value for key, value in config.plan.model_dump().items() if value != default[key]}
    return PlanConfig(**{**stated, **given})


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def accelerator(plan: PlanConfig, precision: Precision) -> Accelerator:
    """The accelerator of `plan` at one precision; its `peak_tflops` and `memory_gib` replace the data sheet.

    Raises ConfigError for an unknown name, and for cpu without both values.
    """
    peak, memory = plan.peak_tflops, plan.memory_gib
    if plan.accelerator in _MEMORY:
        chip = plan.accelerator.rpartition("-")[0]
        peak, memory = peak or _PEAKS[chip][precision], memory or _MEMORY[plan.accelerator]
    elif plan.accelerator != CPU:
        raise ConfigError(f"plan.accelerator={plan.accelerator!r}: is not known; known are {', '.join(KNOWN)}")
    if peak is None or memory is None:
        raise ConfigError(
            "plan.accelerator=cpu: no data sheet; set plan.peak_tflops (`make bench` measures it) and plan.memory_gib"
        )
    return Accelerator(plan.accelerator, peak * TERA, memory * GIB)


def wall_hours(config: StudyConfig, macs: float, precision: Precision) -> float:
    """Wall hours of this many multiply-accumulates, two FLOPs each, on all devices of the plan."""
    plan = config.plan
    return 2 * macs / (plan.count * plan.utilisation * accelerator(plan, precision).peak) / 3600
