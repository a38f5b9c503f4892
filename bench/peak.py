"""The machine's measured rate of matrix products, the upper bound of all other rates."""

from __future__ import annotations

from typing import Any

import torch

from dit.runtime.device import matmul_peak


def measure() -> dict[str, Any]:
    """TFLOP/s of square matrix products in fp32 and bf16, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "matmul_fp32_tflops": round(matmul_peak(device, torch.float32) / 1e12, 5),
        "matmul_bf16_tflops": round(matmul_peak(device, torch.bfloat16) / 1e12, 5),
    }
