"""GELU in its tanh form (Hendrycks & Gimpel 2016), at the speed of an exponential on a CPU."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# 0.5 (1 + tanh u) = sigmoid(2 u), and here 2 u = x (_LINEAR + _CUBIC x^2).
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR
# With AVX-512 torch's own kernel, a single pass, is faster than the passes below; with AVX2 it is slower.
_OWN_IS_FAST = torch.backends.cpu.get_cpu_capability() == "AVX512"


def gelu_tanh(x: Tensor) -> Tensor:
    """F.gelu(x, approximate="tanh"), to float32's rounding."""
    if x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    # A CPU's vectorised tanh takes up to four times as long as its sigmoid. Compiled, the whole is one pass in float32,
    # derived and recomputed as the compiler sees fit.
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(x * (_LINEAR + _CUBIC * x * x))
    # Otherwise that gain may outweigh the additional passes, but in bf16 these would round in between.
    if x.dtype == torch.float32 and not _OWN_IS_FAST:
        gated: Tensor = _SigmoidGelu.apply(x)  # type: ignore[no-untyped-call]
        return gated
    return F.gelu(x, approximate="tanh")


class _SigmoidGelu(torch.autograd.Function):
    """x sigmoid(2 u), with a derivative of few passes and no second sigmoid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = x.square().mul_(_CUBIC).add_(_LINEAR).mul_(x).sigmoid_()
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        slope = x.square().mul_(3 * _CUBIC).add_(_LINEAR).mul_(x)
        return torch.addcmul(gate, slope, torch.addcmul(gate, gate, gate, value=-1)).mul_(gradient)
