"""Faults of sampling, preparation and evaluation; those of training are in `faults.py`.

Shapes: N samples, T tokens, O output values of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gates.faults import Fault, Patch, cosine_schedule
from dit.data import encoding
from dit.diffusion import sampler as reverse
from dit.diffusion.schedule import Schedule
from dit.metrics import setup
from dit.model import transformer
from dit.model.transformer import DiT
from dit.sampling import generate


def unloaded_weights(patch: Patch) -> None:
    """As with a prefix such as `module.` and strict=False."""
    patch.setattr(DiT, "load_state_dict", lambda *_, **_settings: None)


def called(change: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Fault:
    """The sampled model sees other inputs."""
    forward = DiT.forward
    return lambda patch: patch.setattr(DiT, "forward", lambda self, x, t, y: forward(self, *change(x, t, y)))


def labels_off_by_one(patch: Patch) -> None:
    forward = DiT.forward

    def shifted(self: DiT, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return forward(self, x, t, (y + 1) % (self.inputs.classes + 1))

    patch.setattr(DiT, "forward", shifted)


def swapped_patches(patch: Patch) -> None:
    """The values of a patch are ordered channel, row, column."""

    def channel_first(x_NTO: Tensor, size: int) -> Tensor:
        n, tokens, values = x_NTO.shape
        side, channels = math.isqrt(tokens), values // size**2
        grid = x_NTO.reshape(n, side, side, channels, size, size)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, side * size, side * size)

    patch.setattr(transformer, "unpatchify", channel_first)


def skipped_map(patch: Patch) -> None:
    respaced = Schedule.respaced

    def without_map(self: Schedule, steps: int, *, ddim: bool = False) -> Schedule:
        return Schedule(respaced(self, steps, ddim=ddim).betas, np.arange(steps))

    patch.setattr(Schedule, "respaced", without_map)


def cosine_sampling(patch: Patch) -> None:
    patch.setattr(generate, "SCHEDULES", {"linear": cosine_schedule})


def clipped_latents(patch: Patch) -> None:
    """The predicted x_0 is clipped to [-1, 1], as `clip_denoised` does for pixels."""
    ancestral = reverse._ancestral

    def clipping(chain: Schedule) -> Any:
        advance, abar = ancestral(chain), chain.alphas_cumprod.tolist()

        def clipped(output: Tensor, x_t: Tensor, k: int) -> Any:
            epsilon, v = output.chunk(2, dim=1)
            signal, size = math.sqrt(abar[k]), math.sqrt(1 - abar[k])
            x0 = ((x_t - size * epsilon) / signal).clamp(-1, 1)
            return advance(torch.cat([(x_t - signal * x0) / size, v], dim=1), x_t, k)

        return clipped

    patch.setattr(reverse, "_ancestral", clipping)


def wrong_guidance(patch: Patch) -> None:
    guide = reverse.guide
    patch.setattr(reverse, "guide", lambda output, scale, channels: guide(output, 2 - scale, channels))


def wrong_null_label(patch: Patch) -> None:
    draw = generate.sample
    patch.setattr(generate, "sample", lambda *a: draw(*a[:5], 2, *a[6:]))


# Preparation and evaluation.


def written_over(patch: Patch) -> None:
    """Eight processes count their files from the same number: 7 of 8 samples are written over."""
    add = encoding.ShardEncoder._add

    def over(self: Any, writer: Any, images: Any) -> Any:
        return add(self, writer, [(item, images[index // 8 * 8][1]) for index, (item, _) in enumerate(images)])

    patch.setattr(encoding.ShardEncoder, "_add", over)


def labels_of_others(patch: Patch) -> None:
    """Labels are shuffled when the dataset is prepared."""
    add, random = encoding.ShardWriter.add, np.random.default_rng(0)
    patch.setattr(
        encoding.ShardWriter, "add", lambda self, key, _, values: add(self, key, int(random.integers(10)), values)
    )


def wrong_reference(patch: Patch) -> None:
    """The reference statistics are those of other images: negatives."""
    source = setup.from_source

    def of_negatives(images: Any, *arguments: Any) -> Any:
        load = images.load
        return source(replace(images, load=lambda item: 255 - load(item)), *arguments)

    patch.setattr(setup, "from_source", of_negatives)
