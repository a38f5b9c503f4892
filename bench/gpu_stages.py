"""On a GPU, besides the model: autoencoder, Inception features, and the copy of a checkpoint to the host."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.features import random_inception
from bench.harness import Row
from bench.preparation import save_autoencoder
from bench.timing import seconds_per_call
from dit.checkpoints.write import HostCopy
from dit.codec.open import open_codec
from dit.metrics.extractors import open_inception
from dit.model.transformer import DiT
from dit.runtime.torchvision_shim import ensure_torchvision
from dit.study.config import DatasetConfig, TrainConfig
from dit.study.variants import InputSpec, resolve
from dit.training.optimizer import build_optimizer, optimizer_tensors

SIZE = 256
BATCH = 64
CHECKPOINT = "DiT-XL/2"


def measure(task: str, side: str) -> dict[str, Any]:
    """The rate of one side, in the row's unit, and its peak GPU memory."""
    if not torch.cuda.is_available():
        return {"skipped": "no GPU here"}
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        call = {"encode": _encode, "decode": _decode, "features": _features, "checkpoint": _checkpoint}[task]
        rate = call(Path(folder), side)
    return {"rate": rate, "beside": {"GiB": round(torch.cuda.max_memory_allocated() / 2**30, 1)}}


def _images() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)


def _dataset(folder: Path, dtype: str) -> DatasetConfig:
    return DatasetConfig.model_validate(
        {
            "name": "bench",
            "source": {"kind": "folder", "path": str(folder)},
            "codec": {"kind": "vae", "weights": str(folder), "dtype": dtype},
            "image_size": SIZE,
            "classes": 2,
        }
    )


def _plain_autoencoder(folder: Path) -> Any:
    ensure_torchvision()
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder).to("cuda").eval()


def _encode(folder: Path, side: str) -> float:
    """Encode images and their mirror images; moments end on the host."""
    save_autoencoder(folder)
    images = _images()
    if side == "plain fp32":
        model = _plain_autoencoder(folder)

        @torch.no_grad()
        def call() -> None:
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).cuda() / 127.5 - 1
            for view in (pixels, pixels.flip(-1)):
                model.encode(view).latent_dist.parameters.cpu()

        return BATCH / seconds_per_call(call)
    codec = open_codec(_dataset(folder, side), "cuda", decoding=False, batch=BATCH)
    return BATCH / seconds_per_call(lambda: codec.encode(images, mirror=True))


def _decode(folder: Path, side: str) -> float:
    """Decode latents; 8-bit images end on the host."""
    save_autoencoder(folder)
    latents = torch.randn(BATCH, 4, SIZE // 8, SIZE // 8, device="cuda")
    if side == "plain fp32":
        model = _plain_autoencoder(folder)

        @torch.no_grad()
        def call() -> None:
            pixels = model.decode(latents / 0.18215).sample
            pixels.add(1).mul(127.5).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()

        return BATCH / seconds_per_call(call)
    codec = open_codec(_dataset(folder, side), "cuda", decoding=True, batch=BATCH)
    return BATCH / seconds_per_call(lambda: codec.decode(latents))


def _features(folder: Path, side: str) -> float:
    """Extract 2048 features from 8-bit images; both are on the host."""
    images, path = _images(), folder / "weights.pth"
    plain = random_inception(path)
    if side == "plain fp32":
        plain = plain.cuda()

        @torch.inference_mode()
        def call() -> None:
            plain(torch.from_numpy(images).cuda().permute(0, 3, 1, 2).contiguous())[0].cpu()

        return BATCH / seconds_per_call(call)
    extractor = open_inception(path, "0" * 64, torch.device("cuda"), "bf16" if side == "bf16" else "fp32")
    return BATCH / seconds_per_call(lambda: extractor(images))


def _checkpoint(_folder: Path, side: str) -> float:
    """Copy weights, EMA and optimizer state to the host, in GB/s, while training waits."""
    with torch.device("cuda"):
        model = DiT(resolve(CHECKPOINT), InputSpec(channels=4, size=32, classes=1000))
    optimizer = build_optimizer(model, TrainConfig(steps=1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    files = {"raw": weights, "ema": weights, "optimizer": optimizer_tensors(model, optimizer)}
    tensors = [tensor for named in files.values() for tensor in named.values()]
    size = sum(tensor.nbytes for tensor in tensors) / 1e9
    if side == "tensor by tensor":
        return size / seconds_per_call(lambda: [tensor.cpu() for tensor in tensors])
    host = HostCopy()
    if side == "buffers reserved":
        host.reserve(files)
        return size / seconds_per_call(lambda: host.take(files))
    torch.cuda.synchronize()
    start = time.perf_counter()
    host.take(files)
    return size / (time.perf_counter() - start)


def rows() -> list[Row]:
    """Each part against its plain implementation."""
    halves = ("plain fp32", "float32", "float16")
    return [
        _row("encode", f"autoencoder, encode image and mirror image, {SIZE} x {SIZE}", "images/s", halves),
        _row("decode", f"autoencoder, decode, {SIZE} x {SIZE}", "images/s", halves),
        _row("features", f"Inception features, {SIZE} x {SIZE}", "images/s", ("plain fp32", "fp32", "bf16")),
        _row(
            "checkpoint",
            f"checkpoint of {CHECKPOINT}, copy to the host",
            "GB/s",
            ("tensor by tensor", "buffers not reserved", "buffers reserved"),
        ),
    ]


def _row(task: str, name: str, unit: str, sides: tuple[str, ...]) -> Row:
    return Row(name, unit, __name__, {side: {"task": task, "side": side} for side in sides})
