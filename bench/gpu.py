"""On a GPU: the paper's models, batch 256, compiled bf16, as a share of the measured matmul peak; memory; sampling."""

from __future__ import annotations

from typing import Any

import torch

from bench.harness import Row
from bench.textbook import TextbookDiT, TextbookTrainer
from bench.timing import seconds_per_call
from dit.compute import autocast, matmul_peak, matmul_precision
from dit.config import FitConfig, SamplingConfig, TrainConfig
from dit.data.loader import StepBatch
from dit.diffusion.sampler import sample
from dit.diffusion.schedule import linear_schedule
from dit.distributed import session
from dit.model.transformer import DiT
from dit.training.trainer import Trainer
from dit.variants import InputSpec, ModelSpec, resolve

INPUTS = InputSpec(channels=4, size=32, classes=1000)
BATCH = 256
MODELS = ("DiT-B/2", "DiT-L/2", "DiT-XL/2", "DiT-XL/4")
SAMPLING_STEPS = 25
SAMPLING_BATCH = 128


def measure(variant: str, task: str, side: str) -> dict[str, Any]:
    """Images per second of `task` (train or sample), with the share of the peak and the memory it took."""
    spec, device = resolve(variant), torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    if task == "train":
        images, seconds, flops = BATCH, _train(spec, side), 6 * spec.macs(INPUTS) * BATCH
    else:
        images, seconds = SAMPLING_BATCH, _sample(spec)
        flops = 2 * spec.macs(INPUTS) * SAMPLING_BATCH * SAMPLING_STEPS
    memory = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    share = flops / seconds / matmul_peak(device, torch.bfloat16)
    return {
        "rate": images / seconds,
        "share_of_peak": share,
        "peak_memory_bytes": memory,
        "beside": {"GiB": round(memory / 2**30, 1)},
    }


def _train(spec: ModelSpec, side: str) -> float:
    with session("cuda") as ranks:
        x0, noise = (torch.randn(BATCH, 4, 32, 32, device=ranks.device) for _ in range(2))
        t, y = (torch.randint(1000, (BATCH,), device=ranks.device) for _ in range(2))
        if side == "textbook":
            plain = TextbookTrainer(_textbook(spec).to(ranks.device), "bf16")
            return seconds_per_call(lambda: plain.step(x0, t, y, noise))
        train = TrainConfig(steps=1, global_batch=BATCH, precision="bf16")
        fit = FitConfig(compile="on" if side == "compiled" else "off")
        trainer = Trainer(spec, INPUTS, train, fit, ranks)
        batch = StepBatch(x0_NCHW=x0, t_N=t, noise_NCHW=noise, y_N=y, step=1)
        return seconds_per_call(lambda: trainer.step(batch))


def _sample(spec: ModelSpec) -> float:
    device = torch.device("cuda")
    matmul_precision("bf16", device)
    with device:
        model = DiT(spec, INPUTS).eval()
        labels = torch.arange(SAMPLING_BATCH) % INPUTS.classes
    config = SamplingConfig(steps=SAMPLING_STEPS)
    shape = (SAMPLING_BATCH, 4, 32, 32)
    schedule = linear_schedule()

    def draw() -> None:
        with autocast("bf16", device):
            sample(model, schedule, lambda _: torch.randn(shape, device=device), labels, config, model.null_label)

    return seconds_per_call(draw)


def _textbook(spec: ModelSpec) -> TextbookDiT:
    return TextbookDiT(spec.depth, spec.hidden, spec.heads, spec.patch, INPUTS.channels, INPUTS.size, INPUTS.classes)


def rows() -> list[Row]:
    """Training of the four models of the failed study, and sampling of them."""
    trained = [
        Row(
            f"training step, {variant}, bf16, batch {BATCH}",
            "images/s",
            __name__,
            {side: {"variant": variant, "task": "train", "side": side} for side in ("textbook", "eager", "compiled")},
        )
        for variant in MODELS
    ]
    sampled = [
        Row(
            f"sampling, {variant}, bf16, {SAMPLING_STEPS} steps",
            "images/s",
            __name__,
            {"ours": {"variant": variant, "task": "sample", "side": "ours"}},
        )
        for variant in MODELS
    ]
    return [*trained, *sampled]
