"""One training step: its update, its losses, its state, and independence of micro-batches and kernels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dit.data.loader import StepBatch
from dit.diffusion.losses import diffuse, training_losses
from dit.diffusion.schedule import linear_schedule
from dit.errors import MismatchError
from dit.health.steps import StepLosses
from dit.runtime.device import can_compile
from dit.runtime.distributed import Ranks
from dit.study import layout
from dit.study.config import FitConfig, StudyConfig
from dit.study.study_file import load
from dit.training.trainer import Trainer

STUDY = Path(__file__).parents[3] / "configs" / "digits.yaml"
BATCH = 12
ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def study(*overrides: str) -> StudyConfig:
    return load(STUDY, [f"train.global_batch={BATCH}", "train.ema_decay=0.9", *overrides])


def trainer(config: StudyConfig, variant: str = "mini-S/2", **fit: object) -> Trainer:
    return Trainer(config.spec(variant), config.dataset.inputs, config.train, FitConfig.model_validate(fit), ALONE)


def batch(step: int) -> StepBatch:
    draw = torch.Generator().manual_seed(step)
    return StepBatch(
        step=step,
        x0_NCHW=torch.rand(BATCH, 1, 8, 8, generator=draw) * 2 - 1,
        t_N=torch.randint(0, 1000, (BATCH,), generator=draw),
        noise_NCHW=torch.randn(BATCH, 1, 8, 8, generator=draw),
        y_N=torch.randint(0, 11, (BATCH,), generator=draw),
    )


def run(trained: Trainer, steps: int = 6) -> list[StepLosses]:
    for step in range(trained.steps_done + 1, trained.steps_done + steps + 1):
        trained.step(batch(step))
    return trained.window.read()


def close(a: list[StepLosses], b: list[StepLosses], tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=tolerance, atol=1e-9)


@pytest.mark.parametrize("micro_batch", [6, 5, 1], ids=["halves", "uneven", "single samples"])
def test_micro_batches_change_no_loss_and_no_average(micro_batch: int) -> None:
    whole, parts = trainer(study()), trainer(study(), micro_batch=micro_batch)
    close(run(whole), run(parts))
    for name, tensor in whole.ema.tensors.items():
        torch.testing.assert_close(parts.ema.tensors[name], tensor, rtol=1e-4, atol=1e-6)


def test_activation_checkpointing_and_attention_kernel_change_no_loss() -> None:
    close(run(trainer(study())), run(trainer(study(), activation_checkpointing=True, attention="sdpa")))


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler")
def test_compilation_changes_no_loss() -> None:
    close(run(trainer(study(), compile="off"), 3), run(trainer(study(), compile="on"), 3))


def test_first_loss_is_that_of_a_zero_output() -> None:
    row = run(trainer(study()), 1)[0]
    given = batch(1)
    schedule = linear_schedule()
    noisy = diffuse(schedule, given.x0_NCHW, given.t_N, given.noise_NCHW)
    mse, vb = training_losses(schedule, torch.zeros(BATCH, 2, 8, 8), given.x0_NCHW, noisy, given.t_N, given.noise_NCHW)
    assert row.mse == pytest.approx(float(mse.mean()), rel=1e-5)
    assert row.vb == pytest.approx(float(vb.mean()), rel=1e-5)
    assert row.total == pytest.approx(row.mse + row.vb)


def test_step_equals_adamw_and_ema_formulas() -> None:
    """Against the formulas of Loshchilov & Hutter 2019, written out, in float64."""
    config = study("train.learning_rate=1e-2", "train.betas=[0.8, 0.95]", "train.weight_decay=0.1")
    trained = trainer(config)
    run(trained, 3)
    parameter = trained.model.blocks[0].attn.proj.weight
    state = trained.optimizer.state[parameter]
    theta, average, m, v = (
        tensor.detach().double().clone()
        for tensor in (
            parameter,
            trained.ema.tensors["blocks.0.attn.proj.weight"],
            state["exp_avg"],
            state["exp_avg_sq"],
        )
    )
    gradients: list[torch.Tensor] = []
    parameter.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.detach().double().clone()))
    run(trained, 1)
    (g,) = gradients
    m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
    step = 1e-2 * (m / (1 - 0.8**4)) / ((v / (1 - 0.95**4)).sqrt() + 1e-8)
    theta = theta * (1 - 1e-2 * 0.1) - step
    torch.testing.assert_close(parameter.detach().double(), theta, rtol=1e-5, atol=1e-7)
    averaged = trained.ema.tensors["blocks.0.attn.proj.weight"].double()
    torch.testing.assert_close(averaged, 0.9 * average + 0.1 * theta, rtol=1e-5, atol=1e-7)


def test_position_table_is_averaged_and_never_trained() -> None:
    trained = trainer(study("train.learning_rate=0.1"))
    before = trained.model.pos_embed.detach().clone()
    run(trained)
    assert torch.equal(trained.model.pos_embed, before)
    assert torch.equal(trained.ema.tensors["pos_embed"], before)
    assert "exp_avg.pos_embed" not in trained.files()[layout.OPTIMIZER]


def test_gradient_norm_is_that_of_the_mean_loss() -> None:
    trained = trainer(study())
    gradients: list[torch.Tensor] = []
    for parameter in trained.model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.detach().flatten().clone()))
    row = run(trained, 1)[0]
    assert row.grad_norm == pytest.approx(float(torch.cat(gradients).norm()), rel=1e-5)
    assert row.grad_norm > 0


def test_loaded_state_continues_with_identical_losses() -> None:
    straight, first, second = (trainer(study()) for _ in range(3))
    expected = run(straight, 8)
    run(first, 4)
    copies = {file: {name: t.clone() for name, t in tensors.items()} for file, tensors in first.files().items()}
    second.load(4, "checkpoint", copies)
    assert run(second, 4) == expected[4:]
    for name, tensor in straight.ema.tensors.items():
        assert torch.equal(second.ema.tensors[name], tensor)


@pytest.mark.parametrize("file", [layout.RAW_WEIGHTS, layout.EMA_WEIGHTS, layout.OPTIMIZER])
def test_state_of_another_model_is_refused(file: str) -> None:
    mine, other = trainer(study()), trainer(study(), "mini-B/2")
    run(mine, 1)
    run(other, 1)
    with pytest.raises(MismatchError, match="does not fit mini-S/2"):
        mine.load(1, "checkpoint", {**mine.files(), file: other.files()[file]})


def test_optimizer_state_with_a_tensor_missing_is_refused() -> None:
    trained = trainer(study())
    run(trained, 1)
    files = trained.files()
    del files[layout.OPTIMIZER]["exp_avg.blocks.0.mlp.fc1.weight"]
    with pytest.raises(MismatchError, match=r"lacks exp_avg\.blocks\.0\.mlp\.fc1\.weight"):
        trained.load(1, "checkpoint", files)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("file", [layout.RAW_WEIGHTS, layout.EMA_WEIGHTS, layout.OPTIMIZER])
def test_one_value_that_is_not_finite_is_found_anywhere_in_the_state(file: str, value: float) -> None:
    trained = trainer(study())
    run(trained, 1)
    assert trained.is_finite()
    tensors = trained.files()[file]
    name = next(name for name in tensors if name.endswith("blocks.1.mlp.fc2.weight"))
    tensors[name].view(-1)[7] = value
    assert not trained.is_finite()


def test_bf16_losses_are_near_fp32_and_its_state_is_float32() -> None:
    full, half = trainer(study()), trainer(study("train.precision=bf16"))
    close(run(full), run(half), tolerance=0.05)
    assert {t.dtype for tensors in half.files().values() for t in tensors.values()} == {torch.float32}
