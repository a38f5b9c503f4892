"""GELU in its tanh form: values, derivative and precision on each of its paths."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dit.model import activation
from dit.model.activation import gelu_tanh
from dit.runtime.device import can_compile

VALUES = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, 0.0, 1e4])])


@pytest.mark.parametrize("own_is_fast", [True, False])
def test_gelu_and_its_derivative_are_exact_to_float32(own_is_fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "_OWN_IS_FAST", own_is_fast)
    x, exact = VALUES.clone().requires_grad_(), VALUES.double().requires_grad_()
    actual, expected = gelu_tanh(x), F.gelu(exact, approximate="tanh")
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)
    actual.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, exact.grad, rtol=1e-6, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_bf16_and_float64_use_the_kernel_of_torch(dtype: torch.dtype) -> None:
    x = VALUES.to(dtype)
    assert torch.equal(gelu_tanh(x), F.gelu(x, approximate="tanh"))


@pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(("dtype", "ulp"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_compiled_gelu_rounds_once(dtype: torch.dtype, ulp: float) -> None:
    x = VALUES.to(dtype, copy=True).requires_grad_()
    exact = x.detach().to(torch.float64).requires_grad_()
    actual, expected = torch.compile(gelu_tanh)(x), F.gelu(exact, approximate="tanh")
    torch.testing.assert_close(actual.double(), expected, rtol=ulp, atol=1e-6)
    actual.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, exact.grad, rtol=ulp, atol=1e-5, check_dtype=False)
