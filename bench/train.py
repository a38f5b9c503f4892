"""Training step (forward, loss, backward, AdamW, EMA): ours against the textbook's, and ours without one part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bench.harness import Row
from bench.textbook import TextbookDiT, TextbookTrainer
from bench.timing import seconds_per_call
from dit.data.loader import StepBatch
from dit.model import transformer
from dit.runtime.device import computed_in, cpu_has_bf16, matmul_peak, matmul_precision, tune_process
from dit.runtime.distributed import session
from dit.study.config import FitConfig, TrainConfig
from dit.study.variants import InputSpec, ModelSpec, resolve
from dit.training.trainer import Trainer

# Variant -> latent, batch; a step takes one or two seconds on two cores.
SETTINGS: dict[str, tuple[InputSpec, int]] = {
    "mini-XL/2": (InputSpec(1, 8, 10), 128),
    "DiT-S/2": (InputSpec(4, 32, 1000), 4),
    "DiT-B/2": (InputSpec(4, 32, 1000), 2),
}
PRODUCTS = "products alone"
PARTS = ("allocator", "matmul", "attention", "activation", "optimizer", "average")


def measure(variant: str, precision: str, side: str, left_out: str = "") -> dict[str, Any]:
    """Steps per second. `left_out` is the one of PARTS that is replaced by torch's default."""
    if _takes_minutes(variant, precision):
        return {"skipped": "this CPU has no bf16 kernels, and the textbook's step takes a minute"}
    spec = resolve(variant)
    inputs, batch = SETTINGS[variant][0], _batch(variant, precision)
    torch.manual_seed(0)
    data = (
        torch.randn(batch, inputs.channels, inputs.size, inputs.size),
        torch.randint(1000, (batch,)),
        torch.randint(inputs.classes, (batch,)),
        torch.randn(batch, inputs.channels, inputs.size, inputs.size),
    )
    flops = 6 * spec.macs(inputs) * batch
    # The ceiling is the faster product: without bf16 kernels, fp32's for all sides.
    fastest = computed_in(precision, torch.device("cpu"))
    dtype = torch.bfloat16 if fastest == "bf16" else torch.float32
    if side in ("textbook", PRODUCTS):
        shape = (spec.depth, spec.hidden, spec.heads, spec.patch, inputs.channels, inputs.size, inputs.classes)
        model = TextbookDiT(*shape)
        if side == PRODUCTS:
            call, flops = _products(model, data, precision, dtype)
            seconds = seconds_per_call(call)
        else:
            plain = TextbookTrainer(model, precision)
            seconds = seconds_per_call(lambda: plain.step(*data))
    else:
        seconds = _ours(spec, inputs, data, precision, compiled=side == "compiled", left_out=left_out)
    # The peak is measured after the timing, because measuring it first would warm up kernels that the step uses.
    peak = matmul_peak(torch.device("cpu"), dtype)
    return {
        "rate": 1 / seconds,
        "share_of_peak": flops / seconds / peak,
        "beside": {"batch": batch, "in": precision if side == "textbook" else fastest},
    }


@torch.no_grad()
def _products(
    model: TextbookDiT, data: tuple[torch.Tensor, ...], precision: str, dtype: torch.dtype
) -> tuple[Callable[[], None], int]:
    """A call with the linear layers' products alone, forward and backward, at their own shapes; and its FLOPs.

    It uses the kernels of our steps. Layers of one shape share their operands, so caches work better than in a step.
    """
    tune_process()
    matmul_precision("bf16" if precision == "bf16" else "fp32", torch.device("cpu"))
    shapes: list[tuple[int, int, int]] = []

    def note(layer: nn.Module, arguments: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        shapes.append((arguments[0].numel() // layer.in_features, layer.in_features, layer.out_features))

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(note)
    x0, t, y, _ = data
    model(x0, t, y)
    operands = {
        (rows, inner, outer): [
            torch.randn(*size, dtype=dtype) for size in ((rows, inner), (outer, inner), (rows, outer))
        ]
        for rows, inner, outer in set(shapes)
    }

    @torch.no_grad()
    def call() -> None:
        for shape in shapes:
            x, weight, gradient = operands[shape]
            F.linear(x, weight)
            gradient @ weight
            gradient.T @ x

    return call, 6 * sum(rows * inner * outer for rows, inner, outer in shapes)


def _batch(variant: str, precision: str) -> int:
    """The batch; smaller if the textbook's bf16 products run without bf16 kernels, 50 times slower."""
    batch = SETTINGS[variant][1]
    return batch if precision != "bf16" or variant.startswith("mini") or cpu_has_bf16() else 1


def _takes_minutes(variant: str, precision: str) -> bool:
    return precision == "bf16" and variant == "DiT-B/2" and not cpu_has_bf16()


def _ours(
    spec: ModelSpec,
    inputs: InputSpec,
    data: tuple[torch.Tensor, ...],
    precision: str,
    *,
    compiled: bool,
    left_out: str,
) -> float:
    if left_out != "allocator":
        tune_process()
    x0, t, y, noise = data
    batch = StepBatch(x0_NCHW=x0, t_N=t, noise_NCHW=noise, y_N=y, step=1)
    train = TrainConfig.model_validate({"steps": 1, "global_batch": len(x0), "precision": precision})
    attention = "sdpa" if left_out == "attention" else "auto"
    fit = FitConfig.model_validate({"compile": "on" if compiled else "off", "attention": attention})
    with session("cpu") as ranks:
        trainer = Trainer(spec, inputs, train, fit, ranks)
        if left_out == "matmul":
            torch.set_float32_matmul_precision("highest")
        if left_out == "activation":
            transformer.gelu_tanh = partial(F.gelu, approximate="tanh")  # type: ignore[assignment]
        if left_out == "optimizer":
            trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-4, weight_decay=0)
        if left_out == "average":
            trainer.ema.update = lambda: _loop_average(trainer)  # type: ignore[method-assign]

        def step() -> None:
            trainer.step(batch)
            trainer.window.read()
            trainer.window.clear()

        return seconds_per_call(step)


@torch.no_grad()
def _loop_average(trainer: Trainer) -> None:
    for average, parameter in zip(trainer.ema.tensors.values(), trainer.model.parameters(), strict=True):
        average.mul_(0.9999).add_(parameter, alpha=1 - 0.9999)


def _row(variant: str, precision: str, target: float) -> Row:
    sides = {
        side: {"variant": variant, "precision": precision, "side": side}
        for side in ("textbook", "eager", "compiled", PRODUCTS)
    }
    # Without bf16 kernels the textbook's step of a paper model takes ten seconds and more.
    slow = precision == "bf16" and not variant.startswith("mini") and not cpu_has_bf16()
    return Row(
        f"training step, {variant}, {precision}",
        "steps/s",
        __name__,
        sides,
        target,
        rounds=1 if slow else 3,
        ceiling=PRODUCTS,
    )


def _parts(variant: str) -> Row:
    whole = {"variant": variant, "precision": "fp32", "side": "eager"}
    sides = {"all": whole, **{f"without {part}": {**whole, "left_out": part} for part in PARTS}}
    return Row(f"what each part gives, {variant}, fp32", "steps/s", __name__, sides, parts=True)


def rows() -> list[Row]:
    """Three sizes in both precisions, and the gain of each part for the smaller two."""
    aims = {"mini-XL/2": (2.0, 3.0), "DiT-S/2": (2.0, 1.6), "DiT-B/2": (1.8, 1.3)}
    compared = [_row(v, p, aim) for v, pair in aims.items() for p, aim in zip(("fp32", "bf16"), pair, strict=True)]
    return [*compared, _parts("mini-XL/2"), _parts("DiT-S/2")]
