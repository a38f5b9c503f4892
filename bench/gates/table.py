"""The table of broken runs: one row each, with the check that must name its cause, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from bench.gates import faults as broken
from bench.gates.faults import Fault

Data = Literal["digits", "latents"]
Stage = Literal["prepare", "train", "resume", "sample", "evaluate"]

DATA: tuple[Data, ...] = ("digits", "latents")
BUDGET: dict[Data, int] = {"digits": 1500, "latents": 52_000}
"""Steps of a whole training: those of configs/digits.yaml, and of the failed study of the paper's models."""
SAMPLED: dict[Data, int] = {"digits": 500, "latents": 160}
"""The first sampled checkpoint."""
LEARNING_DEADLINE = 125
"""Step from which `learning` demands a result: 50 + 6 tau, with tau 12.5 in both studies."""


@dataclass(frozen=True)
class Case:
    """One fault, in a command of the product."""

    name: str
    stage: Stage
    fault: Fault | None
    """None where the study file itself is wrong."""
    check: str
    cause: str
    """Regular expression that the message contains."""
    last: int = 0
    """Last step at which the check may speak; 0 for a stage before or after the training, which has one moment."""
    data: tuple[Data, ...] = DATA
    settings: tuple[str, ...] = ()
    ranks: int = 1
    odd: tuple[str, ...] = ()
    """Settings of all ranks but the first."""
    action: Literal["warn", "stop"] = "stop"


EMA_CAUSE = "EMA does not follow the weights"
FEED_SCALE = "scale factor is forgotten or applied twice"
GUIDED = ("sampling.cfg_scale=4",)

CASES: tuple[Case, ...] = (
    Case("EMA never updated", "train", broken.frozen_ema, "ema", "EMA never changes", 5),
    Case("EMA updated every 5th step", "train", broken.seldom_ema, "ema", EMA_CAUSE, 5),
    Case("EMA in bf16", "train", broken.rounded_ema(torch.bfloat16), "ema", EMA_CAUSE, 5),
    Case("EMA in fp16", "train", broken.rounded_ema(torch.float16), "ema", EMA_CAUSE, 5),
    Case("wrong EMA decay", "train", broken.other_decay, "ema", EMA_CAUSE, 5),
    Case("EMA reset on resume", "resume", broken.reset_ema, "identity", "EMA"),
    Case("optimizer not restored", "resume", broken.forgotten_optimizer, "identity", "optimizer's state"),
    Case("restart counted as progress", "resume", broken.forgotten_checkpoint, "identity", "were not loaded"),
    Case("head not trained", "train", broken.frozen_head, "start", r"the head \(final_layer.linear\) is not", 4),
    Case("gradients not zeroed", "train", broken.gradients_pile_up, "start", "gradients are not zeroed", 1),
    Case("x0 as target", "train", broken.other_target(lambda x0, _: x0), "start", r"the image \(x0\)", 1),
    Case("noise halved", "train", broken.other_target(lambda _, noise: noise / 2), "start", "first loss is not", 1),
    Case(
        "noise of another sample",
        "train",
        broken.other_target(lambda _, noise: noise.roll(1, 0)),
        "pure-noise",
        "does not predict the noise",
        10,
    ),
    Case("positions lost", "train", broken.lost_positions, "start", "positions differs from its formula", 1),
    Case("learning rate x 100 in the optimizer", "train", broken.other_rate(100), "start", "100 times", 1),
    Case("learning rate / 100 in the optimizer", "train", broken.other_rate(0.01), "start", "0.01 times", 1),
    Case(
        "learning rate x 100 in the study",
        "train",
        None,
        "recipe",
        "is too high",
        settings=("train.learning_rate=0.25",),
    ),
    Case(
        "learning rate / 100 in the study",
        "train",
        None,
        "recipe",
        "is too low",
        settings=("train.learning_rate=2.5e-5", "train.steps=8", "evaluation.at_steps=[8]"),
        action="warn",
    ),
    Case(
        "betas of another schedule in training",
        "train",
        broken.cosine_training,
        "learning",
        "no spatial structure",
        LEARNING_DEADLINE + 20,
    ),
    Case("scale factor forgotten", "train", broken.scaled(0), "feed", FEED_SCALE, 8, data=("latents",)),
    Case("scale factor applied twice", "train", broken.scaled(2), "feed", FEED_SCALE, 8, data=("latents",)),
    Case("labels shuffled", "train", broken.fed(broken.shuffled_labels), "labels", "do not belong", 8),
    Case("labels always dropped", "train", broken.fed(broken.dropped_labels), "feed", "dropped labels", 8),
    Case("few timesteps", "train", broken.fed(broken.few_timesteps), "feed", "timesteps are not uniform", 8),
    Case("data repeated", "train", broken.repeated_data, "feed", "more often than an epoch allows", 8),
    Case("NaN in one shard", "train", broken.damaged_shard, "finite", "is not finite", 10),
    Case("loss of rank 0 alone", "train", broken.one_ranks_loss, "start", "of one rank", 1, ranks=2),
    Case("logged loss of rank 0 alone", "train", broken.one_ranks_log, "start", "rank 0's samples alone", 1, ranks=2),
    Case("a dead rank's data missing", "train", broken.missing_rank, "start", "data of a rank are missing", 1, ranks=2),
    Case("data of rank 0 on every rank", "train", broken.one_ranks_data, "feed", "more often than", 8, ranks=2),
    Case("gradients not exchanged", "train", broken.lonely_gradients, "ranks", "other values in", 1, ranks=2),
    Case("a rank with another study", "train", None, "ranks", "rank 1 has", ranks=2, odd=("train.learning_rate=0.01",)),
    Case("weights not loaded", "sample", broken.unloaded_weights, "identity", "weights were not loaded"),
    Case("timestep over 1000", "sample", broken.called(lambda x, t, y: (x, t / 1000, y)), "identity", "not the one"),
    Case("labels off by one", "sample", broken.labels_off_by_one, "identity", "not the one"),
    Case("patch layout swapped", "sample", broken.swapped_patches, "identity", "not the one", data=("latents",)),
    Case("timestep map skipped", "sample", broken.skipped_map, "sampler", "does not turn a perfect denoiser"),
    Case("betas of another schedule", "sample", broken.cosine_sampling, "sampler", "does not turn a perfect denoiser"),
    Case("clip_denoised on latents", "sample", broken.clipped_latents, "sampler", "does not turn", data=("latents",)),
    Case("guidance with the wrong sign", "sample", broken.wrong_guidance, "sampler", "guidance", settings=GUIDED),
    Case("null label wrong", "sample", broken.wrong_null_label, "sampler", "class 3: it is taken", settings=GUIDED),
    Case("7 of 8 samples written over", "prepare", broken.written_over, "data", "copies of others", data=("digits",)),
    Case(
        "labels shuffled in the source",
        "prepare",
        broken.labels_of_others,
        "data",
        "labels are shuffled",
        data=("digits",),
        action="warn",
    ),
    Case("NaN in a prepared shard", "prepare", None, "data", "not finite", data=("latents",)),
    Case("wrong reference statistics", "evaluate", broken.wrong_reference, "yardstick", "reference", data=("digits",)),
)

NOT_SEPARABLE = (
    ("a frozen rank", "it stops all ranks, so only the launcher can name it, from the ranks' records of progress"),
    ("patch layout swapped, with one channel", "a patch of one channel has one order: nothing changes"),
    ("clip_denoised on pixels", "pixels are in [-1, 1] already"),
    ("t / 1000 in training and sampling alike", "the model is consistent; it costs 4 % of the loss"),
    ("a horizontal mirroring applied twice", "it is no change"),
    ("predictions 1 % too small", "smaller than the differences between healthy models"),
    ("7 of 8 labels wrong", "the eighth that is right carries too little for 1 % of a training"),
)
"""Faults that no check of these commands can name, with the reason."""
