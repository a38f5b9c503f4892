"""GELU in its tanh form (Hendrycks & Gimpel 2016, section 2), computed with a sigmoid where a CPU is faster at it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# GELU(x) = 0.5 x (1 + tanh u) with u = sqrt(2 / pi) (x + 0.044715 x^3). As 0.5 (1 + tanh u) = sigmoid(2 u), this is
# x sigmoid(x (_LINEAR + _CUBIC x^2)).
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR
# torch's kernel makes one pass. With AVX-512 it is faster than the passes below, with AVX2 it is slower.
_OWN_IS_FAST = torch.backends.cpu.get_cpu_capability() == "AVX512"


def gelu_tanh(x: Tensor) -> Tensor:
    """Return `F.gelu(x, approximate="tanh")` of any shape, equal to float32 rounding."""
    if x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    # A CPU's vectorised tanh takes up to four times as long as its sigmoid. The compiler fuses this line into one pass
    # in float32 and derives the gradient itself.
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(x * (_LINEAR + _CUBIC * x * x))
    # Eagerly, each operation is a pass of its own. In bf16 every pass would round, so only float32 takes this path.
    if x.dtype == torch.float32 and not _OWN_IS_FAST:
        gated: Tensor = _SigmoidGelu.apply(x)  # type: ignore[no-untyped-call]
        return gated
    return F.gelu(x, approximate="tanh")


class _SigmoidGelu(torch.autograd.Function):
    """x sigmoid(2 u) with a backward pass that reuses the sigmoid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = x.square().mul_(_CUBIC).add_(_LINEAR).mul_(x).sigmoid_()
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        # d/dx [x s(2u)] = s + x s (1 - s) d(2u)/dx; `slope` is x d(2u)/dx.
        slope = x.square().mul_(3 * _CUBIC).add_(_LINEAR).mul_(x)
        return torch.addcmul(gate, slope, torch.addcmul(gate, gate, gate, value=-1)).mul_(gradient)
