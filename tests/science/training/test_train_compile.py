"""Compiled training against eager training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dit.data.loader import StepBatch
from dit.health.steps import StepLosses
from dit.runtime.device import can_compile
from dit.runtime.distributed import Ranks
from dit.study.config import FitConfig
from dit.study.study_file import load
from dit.training.trainer import Trainer

BATCH = 4


def losses(fit: FitConfig) -> list[StepLosses]:
    config = load(Path(__file__).parents[3] / "configs" / "digits.yaml", [f"train.global_batch={BATCH}"])
    alone = Ranks(0, 1, 0, torch.device("cpu"))
    trainer = Trainer(config.spec("mini-S/2"), config.dataset.inputs, config.train, fit, alone)
    draw = torch.Generator().manual_seed(0)
    for step in (1, 2, 3):
        x0_NCHW, noise_NCHW = (torch.randn(BATCH, 1, 8, 8, generator=draw) for _ in range(2))
        trainer.step(StepBatch(step, x0_NCHW, torch.arange(BATCH) * 300, noise_NCHW, torch.arange(BATCH)))
    return trainer.window.read()


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler")
def test_compiled_training_gives_the_losses_of_eager_training() -> None:
    eager, compiled = losses(FitConfig(compile="off")), losses(FitConfig(compile="on"))
    torch.testing.assert_close(torch.tensor(compiled), torch.tensor(eager), rtol=1e-5, atol=1e-9)
