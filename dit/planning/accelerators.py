"""What the accelerators of `dit plan` can do: peaks and memory from their data sheets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dit.errors import ConfigError
from dit.study.config import PlanConfig

Precision = Literal["fp32", "tf32", "bf16"]
CPU = "cpu"
TERA = 1e12
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device: dense matrix rates in true FLOP/s (a multiply-accumulate is two), memory in bytes."""

    name: str
    peak: float
    memory: float


# Dense (no sparsity) TFLOP/s from NVIDIA's data sheets; GiB as nvidia-smi reports them.
_SHEETS: dict[str, tuple[dict[Precision, float], float]] = {
    "A100-40G": ({"bf16": 312, "tf32": 156, "fp32": 19.5}, 40.0),
    "A100-80G": ({"bf16": 312, "tf32": 156, "fp32": 19.5}, 80.0),
    "H100-80G": ({"bf16": 989.4, "tf32": 494.7, "fp32": 66.9}, 79.6),
    "H200-141G": ({"bf16": 989.4, "tf32": 494.7, "fp32": 66.9}, 140.4),
    "L40S-48G": ({"bf16": 362.1, "tf32": 183.2, "fp32": 91.6}, 45.0),
}
KNOWN = (*_SHEETS, CPU)


def accelerator(plan: PlanConfig, precision: Precision) -> Accelerator:
    """The accelerator that `plan` names, at one precision; what `plan` states replaces the data sheet.

    Raises ConfigError for an unknown name, and for cpu without a stated peak and memory.
    """
    peak, memory = plan.peak_tflops, plan.memory_gib
    if plan.accelerator in _SHEETS:
        sheet_peaks, sheet_memory = _SHEETS[plan.accelerator]
        peak, memory = peak or sheet_peaks[precision], memory or sheet_memory
    elif plan.accelerator != CPU:
        raise ConfigError(
            f"plan.accelerator={plan.accelerator!r}: is not a known accelerator; known are {', '.join(KNOWN)}"
        )
    if peak is None or memory is None:
        raise ConfigError(
            "plan.accelerator=cpu: has no data sheet here; state plan.peak_tflops (`make bench` measures it)"
            " and plan.memory_gib"
        )
    return Accelerator(plan.accelerator, peak * TERA, memory * GIB)
