"""Sampling with guidance: ours against the textbook's loop."""

from __future__ import annotations

from typing import Any

import torch

from bench.harness import Row
from bench.textbook import TextbookDiT, textbook_sample
from bench.timing import seconds_per_call
from bench.train import SETTINGS
from dit.diffusion.sampler import sample
from dit.diffusion.schedule import linear_schedule
from dit.model.transformer import DiT
from dit.runtime.device import matmul_peak, matmul_precision, tune_process
from dit.study.config import SamplingConfig
from dit.study.variants import InputSpec, ModelSpec, resolve

STEPS = {"mini-XL/2": 50, "DiT-S/2": 10}
BATCH = {"mini-XL/2": 64, "DiT-S/2": 4}
GUIDANCE = 4.0


def measure(variant: str, side: str) -> dict[str, Any]:
    """Images per second with guidance, at the variant's number of steps."""
    spec, inputs = resolve(variant), SETTINGS[variant][0]
    steps, batch = STEPS[variant], BATCH[variant]
    labels = torch.arange(batch) % inputs.classes
    if side == "textbook":
        shape = (spec.depth, spec.hidden, spec.heads, spec.patch, inputs.channels, inputs.size, inputs.classes)
        plain = TextbookDiT(*shape).eval()
        seconds = seconds_per_call(lambda: textbook_sample(plain, labels, steps, GUIDANCE, inputs.classes, inputs.size))
    else:
        seconds = _ours(spec, inputs, labels, steps, compiled=side == "compiled")
    # Guidance doubles the batch: each image with its label and without.
    flops = 2 * spec.macs(inputs) * 2 * batch * steps
    share = flops / seconds / matmul_peak(torch.device("cpu"), torch.float32)
    return {"rate": batch / seconds, "share_of_peak": share, "beside": {"batch": batch}}


def _ours(spec: ModelSpec, inputs: InputSpec, labels: torch.Tensor, steps: int, *, compiled: bool) -> float:
    tune_process()
    matmul_precision("fp32", torch.device("cpu"))
    model = DiT(spec, inputs).eval()
    if compiled:
        model.compile_layers()
    config = SamplingConfig(steps=steps, cfg_scale=GUIDANCE)
    shape = (len(labels), inputs.channels, inputs.size, inputs.size)
    schedule = linear_schedule()

    def draw() -> None:
        sample(model, schedule, lambda _: torch.randn(shape), labels, config, model.null_label)

    return seconds_per_call(draw)


def rows() -> list[Row]:
    """mini-XL/2 and DiT-S/2."""
    aims = {"mini-XL/2": 2.5, "DiT-S/2": 2.0}
    return [
        Row(
            f"guided sampling, {variant}, fp32, {STEPS[variant]} steps",
            "images/s",
            __name__,
            {side: {"variant": variant, "side": side} for side in ("textbook", "eager", "compiled")},
            aim,
        )
        for variant, aim in aims.items()
    ]
