"""On a GPU: training and sampling with the paper's models, as a share of the measured matmul peak, and memory."""

from __future__ import annotations

from typing import Any

import torch

from bench.harness import Row
from bench.textbook import TextbookDiT, TextbookTrainer, textbook_sample
from bench.timing import seconds_per_call
from dit.data.loader import StepBatch
from dit.diffusion.sampler import sample
from dit.diffusion.schedule import linear_schedule
from dit.model.transformer import DiT
from dit.runtime.device import autocast, matmul_peak, matmul_precision
from dit.runtime.distributed import session
from dit.sampling.noise import NoiseStream
from dit.study.config import FitConfig, SamplingConfig, TrainConfig
from dit.study.fields import Precision
from dit.study.variants import InputSpec, ModelSpec, resolve
from dit.training.trainer import Trainer

INPUTS = InputSpec(channels=4, size=32, classes=1000)
BATCH = 256
# The largest first, because the target is set for it.
MODELS = ("DiT-XL/2", "DiT-B/2", "DiT-L/2", "DiT-XL/4")
SAMPLING_STEPS = 10
SAMPLING_BATCH = 128
GUIDANCE = 4.0


def measure(variant: str, task: str, side: str, precision: Precision = "bf16", batch: int = BATCH) -> dict[str, Any]:
    """Images per second of `task` (train or sample), its share of the peak, and its peak memory."""
    if not torch.cuda.is_available():
        return {"skipped": "no GPU here"}
    spec, device = resolve(variant), torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    try:
        if task == "train":
            images, seconds, flops = batch, _train(spec, side, precision, batch), 6 * spec.macs(INPUTS) * batch
        else:
            images, seconds = SAMPLING_BATCH, _sample(spec, side, precision)
            # Guidance doubles the batch: each image with its label and without.
            flops = 2 * spec.macs(INPUTS) * 2 * SAMPLING_BATCH * SAMPLING_STEPS
    except torch.OutOfMemoryError:
        return {"skipped": f"out of memory: {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"}
    memory = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    peak = matmul_peak(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    return {
        "rate": images / seconds,
        "share_of_peak": flops / seconds / peak,
        "peak_memory_bytes": memory,
        "beside": {"GiB": round(memory / 2**30, 1)},
    }


def _train(spec: ModelSpec, side: str, precision: Precision, size: int) -> float:
    with session("cuda") as ranks:
        x0, noise = (torch.randn(size, 4, 32, 32, device=ranks.device) for _ in range(2))
        t, y = (torch.randint(1000, (size,), device=ranks.device) for _ in range(2))
        if side == "textbook":
            if precision == "tf32":
                matmul_precision(precision, ranks.device)
            plain = TextbookTrainer(_textbook(spec).to(ranks.device), precision)
            return seconds_per_call(lambda: plain.step(x0, t, y, noise))
        train = TrainConfig(steps=1, global_batch=size, precision=precision)
        fit = FitConfig(compile="on" if side == "compiled" else "off")
        trainer = Trainer(spec, INPUTS, train, fit, ranks)
        batch = StepBatch(x0_NCHW=x0, t_N=t, noise_NCHW=noise, y_N=y, step=1)
        return seconds_per_call(lambda: trainer.step(batch))


def _sample(spec: ModelSpec, side: str, precision: Precision) -> float:
    device = torch.device("cuda")
    labels = torch.arange(SAMPLING_BATCH, device=device) % INPUTS.classes
    if side == "textbook":
        plain = _textbook(spec).to(device).eval()

        def draw() -> None:
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16"):
                textbook_sample(plain, labels, SAMPLING_STEPS, GUIDANCE, INPUTS.classes, INPUTS.size)

        return seconds_per_call(draw)
    matmul_precision(precision, device)
    with device:
        model = DiT(spec, INPUTS).eval()
    if side == "compiled":
        model.compile_layers()
    config = SamplingConfig(steps=SAMPLING_STEPS, cfg_scale=GUIDANCE, num_samples=SAMPLING_BATCH)
    schedule = linear_schedule()

    def draw_as_the_stage_does() -> None:
        # With the stage's noise, which is drawn on the CPU and depends on seed and sample number alone.
        with (
            autocast(precision, device),
            NoiseStream(config, range(SAMPLING_BATCH), INPUTS, device) as noise,
        ):
            sample(model, schedule, noise, labels, config, model.null_label)

    return seconds_per_call(draw_as_the_stage_does)


def _textbook(spec: ModelSpec) -> TextbookDiT:
    return TextbookDiT(spec.depth, spec.hidden, spec.heads, spec.patch, INPUTS.channels, INPUTS.size, INPUTS.classes)


def rows() -> list[Row]:
    """Training and sampling of four models; the largest is also trained in TF32, the paper's precision."""
    largest, *others = MODELS
    return [
        _row("train", f"training step, {largest}, bf16, batch {BATCH}", largest, ("eager", "compiled")),
        _row("train", f"training step, {largest}, tf32, batch 64", largest, precision="tf32", batch=64),
        *(_row("train", f"training step, {variant}, bf16, batch {BATCH}", variant) for variant in others),
        *(_row("sample", f"guided sampling, {variant}, bf16, {SAMPLING_STEPS} steps", variant) for variant in MODELS),
    ]


def _row(task: str, name: str, variant: str, ours: tuple[str, ...] = ("compiled",), **more: Any) -> Row:
    sides = {side: {"variant": variant, "task": task, "side": side, **more} for side in ("textbook", *ours)}
    return Row(name, "images/s", __name__, sides)
