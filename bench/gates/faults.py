"""Faults that a run may have, each a patch of the product. A patch lasts as long as the process or the test.

Shapes: N samples, C channels, H and W sides of the latent, T tokens, O output values of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dit.data import encoding, loader
from dit.data.loader import BatchMaker, StepBatch
from dit.data.shard_set import ShardSet
from dit.diffusion import sampler as reverse
from dit.diffusion.schedule import Schedule
from dit.metrics import setup
from dit.model import transformer
from dit.model.transformer import DiT
from dit.runtime.distributed import environment_rank
from dit.sampling import generate
from dit.training import run as launch
from dit.training import trainer as training
from dit.training.ema import Ema
from dit.training.trainer import Trainer

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch], object]


# The average of the weights.


def frozen_ema(patch: Patch) -> None:
    patch.setattr(Ema, "update", lambda _self: None)


def rounded_ema(dtype: torch.dtype) -> Fault:
    update = Ema.update

    def rounded(self: Ema) -> None:
        update(self)
        for average in self.tensors.values():
            average.copy_(average.to(dtype))

    return lambda patch: patch.setattr(Ema, "update", rounded)


def seldom_ema(patch: Patch) -> None:
    update, calls = Ema.update, iter(range(10**9))
    patch.setattr(Ema, "update", lambda self: update(self) if next(calls) % 5 == 0 else None)


def other_decay(patch: Patch) -> None:
    patch.setattr(training, "Ema", lambda model, decay: Ema(model, 1 - (1 - decay) / 10))


# The step of a training.


def gradients_pile_up(patch: Patch) -> None:
    patch.setattr(torch.optim.AdamW, "zero_grad", lambda _self, **_settings: None)


def frozen_head(patch: Patch) -> None:
    build = training.build_optimizer

    def build_without_head(model: DiT, train: Any) -> torch.optim.AdamW:
        model.final_layer.linear.requires_grad_(False)
        return build(model, train)

    patch.setattr(training, "build_optimizer", build_without_head)


def other_rate(factor: float) -> Fault:
    """The optimizer's learning rate is not the study's."""
    build = training.build_optimizer

    def build_with_rate(model: DiT, train: Any) -> torch.optim.AdamW:
        return build(model, train.model_copy(update={"learning_rate": train.learning_rate * factor}))

    return lambda patch: patch.setattr(training, "build_optimizer", build_with_rate)


def other_target(target: Callable[[Tensor, Tensor], Tensor]) -> Fault:
    """The loss compares with `target(x0, noise)` instead of the noise."""
    losses = training.training_losses

    def patched(schedule: Schedule, output: Any, x0: Any, x_t: Any, t: Any, noise: Any) -> Any:
        return losses(schedule, output, x0, x_t, t, target(x0, noise))

    return lambda patch: patch.setattr(training, "training_losses", patched)


def lost_positions(patch: Patch) -> None:
    initialise = DiT.initialise

    def without_positions(self: DiT, seed: int) -> None:
        initialise(self, seed)
        self.pos_embed.data.zero_()

    patch.setattr(DiT, "initialise", without_positions)


def cosine_schedule() -> Schedule:
    """Nichol & Dhariwal 2021, eq. 17."""
    steps = np.arange(1001) / 1000
    bar = np.cos((steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return Schedule(np.clip(1 - bar[1:] / bar[:-1], 0, 0.999), np.arange(1000))


def cosine_training(patch: Patch) -> None:
    patch.setattr(training, "SCHEDULES", {"linear": cosine_schedule})


# What a training is fed with.


def fed(change: Callable[[StepBatch], StepBatch]) -> Fault:
    """Batches are changed after they are made."""
    batch = BatchMaker.batch
    return lambda patch: patch.setattr(BatchMaker, "batch", lambda self, step: change(batch(self, step)))


def shuffled_labels(batch: StepBatch) -> StepBatch:
    return replace(batch, y_N=batch.y_N[torch.randperm(len(batch.y_N), generator=torch.Generator().manual_seed(0))])


def dropped_labels(batch: StepBatch) -> StepBatch:
    return replace(batch, y_N=torch.full_like(batch.y_N, 10))


def few_timesteps(batch: StepBatch) -> StepBatch:
    return replace(batch, t_N=batch.t_N // 10)


def scaled(power: int) -> Fault:
    """The scale factor is forgotten (0) or applied twice (2)."""
    draw = loader.sample_posterior
    return lambda patch: patch.setattr(
        loader, "sample_posterior", lambda moments, noise, scale: draw(moments, noise, scale**power)
    )


def repeated_data(patch: Patch) -> None:
    samples = BatchMaker.samples
    patch.setattr(BatchMaker, "samples", lambda self, step: samples(self, step) % 64)


def damaged_shard(patch: Patch) -> None:
    """One shard's latents are not numbers."""
    gather = ShardSet.gather

    def damaged(self: ShardSet, indices: Any, mirrored: Any) -> Any:
        values, labels = gather(self, indices, mirrored)
        values = values.astype(np.float32)
        values[indices < len(self) // 8] = np.nan
        return values, labels

    patch.setattr(ShardSet, "gather", damaged)


# Several ranks.


def one_ranks_loss(patch: Patch) -> None:
    """Only the loss of rank 0 counts."""
    losses = training.training_losses

    def alone(*arguments: Any) -> Any:
        factor = 1.0 if environment_rank() == 0 else 0.0
        return tuple(loss * factor for loss in losses(*arguments))

    patch.setattr(training, "training_losses", alone)


def one_ranks_log(patch: Patch) -> None:
    """Rank 0 logs its own loss, which no other rank's is added to."""
    add = training.LossWindow.add

    def mine(self: Any, step: int, losses_2: Tensor, grad_norm: Tensor) -> None:
        # As if it were not summed over the ranks: rank 0 adds all of it, the others nothing.
        share = self._ranks.world_size if self._ranks.is_main else 0
        add(self, step, losses_2 * share, grad_norm)

    patch.setattr(training.LossWindow, "add", mine)


def one_ranks_data(patch: Patch) -> None:
    """Every rank takes rank 0's share of the data, with noise of its own."""
    samples = BatchMaker.samples

    def first_share(self: BatchMaker, step: int) -> Any:
        mine = self._slice
        try:
            self._slice = range(len(mine))
            return samples(self, step)
        finally:
            self._slice = mine

    patch.setattr(BatchMaker, "samples", first_share)


def missing_rank(patch: Patch) -> None:
    """The batch is divided among twice as many ranks as there are: the data of the dead ones are missing."""
    stream = launch.TrainingStream
    patch.setattr(launch, "TrainingStream", lambda shards, train, **s: stream(shards, train, **{**s, "world_size": 4}))


def lonely_gradients(patch: Patch) -> None:
    """Ranks do not exchange gradients."""
    patch.setattr(Trainer, "_replicate", lambda _self, **_settings: None)


# A resume.


def reset_ema(patch: Patch) -> None:
    """The average begins again at the weights when a training resumes."""

    def load(self: Ema, _tensors: object) -> None:
        for average, parameter in zip(self.tensors.values(), self._parameters, strict=True):
            average.copy_(parameter)

    patch.setattr(Ema, "load", load)


def forgotten_optimizer(patch: Patch) -> None:
    patch.setattr(training, "load_optimizer", lambda *_: None)


def forgotten_checkpoint(patch: Patch) -> None:
    """A training starts again with new weights, and counts on from the checkpoint's step."""

    def load(self: Trainer, step: int, _where: str, files: Any) -> None:
        training.load_optimizer(self.model, self.optimizer, files[training.layout.OPTIMIZER])
        self.steps_done = step

    patch.setattr(Trainer, "load", load)


# Sampling.


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
    patch.setattr(generate, "sample", lambda *a: draw(*a[:5], 3, *a[6:]))


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
