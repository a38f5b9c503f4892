"""The learning rate of each training step, a function of the recipe alone, so a resumed run repeats it. Torch-free."""

from __future__ import annotations

import math
from itertools import accumulate

from dit.study.config import TrainConfig


def rate_share(train: TrainConfig, step: int) -> float:
    """Return the share of `train.learning_rate` that update `step` (from 1) uses, above 0 and at most 1.

    Linear warm-up (Goyal et al. 2017, section 2.2), then constant, or the cosine of Loshchilov & Hutter 2017 (equation
    5, without restarts), which is zero once `train.steps` updates are done.
    """
    if step <= train.warmup_steps:
        return step / train.warmup_steps
    if train.rate == "constant":
        return 1.0
    done = (step - 1 - train.warmup_steps) / (train.steps - train.warmup_steps)
    return (1 + math.cos(math.pi * done)) / 2


def steps_until(train: TrainConfig, full_steps: float) -> float:
    """Return the steps whose shares sum to `full_steps` at the full rate; infinite if the rate falls to zero first."""
    warmup = train.warmup_steps
    if train.rate == "constant" and full_steps >= (warmup + 1) / 2:
        return full_steps + max(warmup - 1, 0) / 2
    shares = accumulate(rate_share(train, step) for step in range(1, train.steps + 1))
    return next((step for step, total in enumerate(shares, 1) if total >= full_steps), math.inf)


def describe(train: TrainConfig) -> str:
    """Return what differs from a constant rate without clipping, for people; empty if nothing does."""
    parts = [f"linear warm-up of {train.warmup_steps:,} steps"] if train.warmup_steps else []
    parts += ["cosine to zero at the last step"] if train.rate == "cosine" else []
    parts += [f"gradient norm clipped at {train.clip_norm:g}"] if train.clip_norm is not None else []
    return ", ".join(parts)
