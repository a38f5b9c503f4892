"""Warm-up, cosine and clipping: the rate of each step, the update, resume, and what enters the hash."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dit.data.loader import StepBatch
from dit.errors import ConfigError
from dit.health.recipe import first_deadline
from dit.runtime.distributed import Ranks
from dit.study.config import FitConfig, StudyConfig
from dit.study.learning_rate import rate_share, steps_until
from dit.study.study_file import load
from dit.training.trainer import Trainer

STUDY = Path(__file__).parents[3] / "configs" / "digits.yaml"
FALLING = ("train.steps=8", "evaluation.at_steps=[8]", "train.warmup_steps=2", "train.rate=cosine")


def study(*overrides: str) -> StudyConfig:
    return load(STUDY, ["train.global_batch=4", *overrides])


def trainer(config: StudyConfig) -> Trainer:
    ranks = Ranks(0, 1, 0, torch.device("cpu"))
    return Trainer(config.run("mini-S/2").spec, config.dataset.inputs, config.train, FitConfig(), ranks)


def train(trained: Trainer, until: int) -> None:
    for step in range(trained.steps_done + 1, until + 1):
        draw = torch.Generator().manual_seed(step)
        x0, noise = torch.rand(4, 1, 8, 8, generator=draw), torch.randn(4, 1, 8, 8, generator=draw)
        t, y = torch.randint(0, 1000, (4,), generator=draw), torch.randint(0, 11, (4,), generator=draw)
        trained.step(StepBatch(step=step, x0_NCHW=x0, t_N=t, noise_NCHW=noise, y_N=y))


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    shares = [rate_share(study(*FALLING).train, step) for step in range(1, 9)]
    assert shares[:3] == [0.5, 1.0, 1.0]
    assert shares[5] == pytest.approx(0.5)  # half of the six steps after the warm-up are done
    assert all(later < earlier for earlier, later in pairwise(shares[2:]))
    assert 0 < shares[-1] < 0.1


def test_adam_moves_the_head_by_the_rate_of_its_first_step() -> None:
    config = study("train.warmup_steps=10")
    trained = trainer(config)
    train(trained, 1)
    moved = float(trained.model.final_layer.linear.weight.detach().abs().max())
    assert moved == pytest.approx(config.train.learning_rate / 10, rel=0.01)


def test_clipping_bounds_the_gradient_and_logs_its_norm_before() -> None:
    free, clipped = trainer(study()), trainer(study("train.clip_norm=0.001"))
    for trained in (free, clipped):
        train(trained, 1)
    assert clipped.window.read() == free.window.read()
    # After one step Adam's first moment is a tenth of the gradient (beta1 = 0.9).
    moments: list[Tensor] = [state["exp_avg"] for state in clipped.optimizer.state.values()]
    assert 10 * float(torch.cat([moment.flatten() for moment in moments]).norm()) == pytest.approx(0.001, rel=0.01)


def test_a_resumed_training_has_the_same_losses() -> None:
    config = study(*FALLING, "train.clip_norm=0.5")
    whole, first, second = (trainer(config) for _ in range(3))
    train(whole, 8)
    train(first, 5)
    second.load(5, "checkpoint", first.files())
    train(second, 8)
    assert second.window.read() == whole.window.read()[5:]


def test_the_length_is_in_the_hash_of_a_cosine_only() -> None:
    def hashed(*overrides: str) -> str:
        config = study(*overrides)
        return config.training_hash(config.run("mini-S/2"))

    assert hashed("train.steps=2000") == hashed("train.steps=1500")
    assert hashed("train.steps=2000", "train.rate=cosine") != hashed("train.steps=1500", "train.rate=cosine")
    plain = hashed()
    assert plain == hashed("train.warmup_steps=0", "train.rate=constant", "train.clip_norm=null")
    changed = ("train.warmup_steps=5", "train.rate=cosine", "train.clip_norm=1")
    assert len({plain, *(hashed(one) for one in changed)}) == 4


def test_deadlines_count_a_step_by_its_share_of_the_rate() -> None:
    plain, warm = study(), study("train.warmup_steps=101")
    spec = plain.run("mini-XL/2").spec
    assert steps_until(warm.train, 51) == 101  # 1/101 + 2/101 + ... + 1
    assert steps_until(warm.train, 60) == 110
    assert first_deadline(warm, spec) > first_deadline(plain, spec)


def test_a_warm_up_as_long_as_the_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="warmup_steps=8 is not below steps=8"):
        study("train.steps=8", "evaluation.at_steps=[8]", "train.warmup_steps=8")
