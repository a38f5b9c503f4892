"""Settings of the process, and the accuracy of float32 under each of them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dit.runtime import device
from dit.study.fields import Precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = True
    device.peak_flops.cache_clear()


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_float32_products_stay_float32_on_a_cpu(precision: Precision) -> None:
    device.matmul_precision(precision, CPU)
    a, b = torch.randn(300, 700), torch.randn(700, 200)
    exact = a.double() @ b.double()
    assert ((a @ b - exact).abs().max() / exact.abs().max()).item() < 1e-5


def test_a_stage_does_not_inherit_the_precision_of_the_one_before() -> None:
    """One process trains, samples and evaluates; an extractor trained after a training is the same as without."""
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False
    device.tune_process()
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32


def test_probe_of_medium_precision_restores_the_setting() -> None:
    torch.set_float32_matmul_precision("high")
    device.medium_is_exact.cache_clear()
    device.medium_is_exact()
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_tf32_is_used_on_a_gpu_only_where_asked_for(precision: Precision, allowed: bool) -> None:
    device.matmul_precision(precision, CUDA)
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_autocast_is_bf16_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    a = torch.randn(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        with device.autocast(precision, CPU):  # type: ignore[arg-type]
            assert (a @ a).dtype == dtype


def test_a_cpu_without_bf16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(device, "medium_is_exact", lambda: False)
    assert [device.computed_in("bf16", place) for place in (CPU, CUDA)] == ["fp32", "bf16"]
    for precision in ("fp32", "bf16"):
        torch.set_float32_matmul_precision("medium")
        device.matmul_precision(precision, CPU)  # type: ignore[arg-type]
        assert torch.get_float32_matmul_precision() == "highest"
    with device.autocast("bf16", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_tuning_sets_the_number_of_threads() -> None:
    device.tune_process(1)
    assert torch.get_num_threads() == 1
    device.tune_process()
    assert torch.get_num_threads() == 1


class Libc:
    """A C library whose mallopt refuses mapping thresholds above `limit`, as old glibc does."""

    def __init__(self, limit: int) -> None:
        self.limit, self.set = limit, dict[int, int]()

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == -3 and value > self.limit:
            return 0
        self.set[parameter] = value
        return 1


@pytest.mark.parametrize("limit", [32 << 20, 1 << 40])
def test_allocator_keeps_blocks_as_large_as_glibc_allows(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    libc = Libc(limit)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    device.tune_process()
    assert libc.set[-3] >= 32 << 20
    assert libc.set[-1] >= 1 << 30


def test_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    device.tune_process()


def test_without_a_compiler_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not device.can_compile()


def test_measured_peak_is_a_plausible_rate() -> None:
    assert 1e8 < device.matmul_peak(CPU, torch.float32) < 1e15
    assert 1e8 < device.peak_flops(CPU, "fp32") < 1e15


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A10", 125e12, 31.2e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 66.9e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H200", 989.4e12, 66.9e12),
    ],
)
def test_peak_of_a_known_gpu_is_that_of_its_data_sheet(
    name: str, bf16: float, fp32: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert device.peak_flops(CUDA, "bf16") == pytest.approx(bf16)
    assert device.peak_flops(CUDA, "fp32") == pytest.approx(fp32)
