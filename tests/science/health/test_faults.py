"""Faults that a training or a sampling may have, each patched into the product: the check that names it, and when.

A fault is run by the product's own commands on the digits. The healthy run, without a patch, passes all checks.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dit.cli.commands import run
from dit.data.loader import BatchMaker, StepBatch
from dit.diffusion import sampler as reverse
from dit.diffusion.schedule import Schedule
from dit.health.log import last_events, read_events
from dit.model.transformer import DiT
from dit.sampling import generate
from dit.storage import open_store
from dit.study import layout
from dit.study.records import HealthEvent
from dit.study.study_file import load
from dit.training import trainer as training
from dit.training.ema import Ema

ROOT = Path(__file__).parents[3]
VARIANT = "mini-S/2"
SETTINGS = (
    "study=faulty",
    "train.steps=300",
    "train.ema_decay=0.98",
    "evaluation.at_steps=[300]",
    "sampling.num_samples=20",
    "fit.threads=1",
    "tracking.kind=none",
)
GUIDED = "sampling.cfg_scale=1.5"

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch], object]


def command(stage: str, root: Path, *settings: str) -> int:
    """Run a stage's command of the study; its exit code."""
    overrides = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    variant = [] if stage == "prepare" else ["--variant", VARIANT]
    return run([stage, str(ROOT / "configs" / "digits.yaml"), *variant, "--root", str(root), *overrides])


def readings(root: Path) -> list[HealthEvent]:
    config = load(ROOT / "configs" / "digits.yaml", list(SETTINGS))
    return read_events(open_store(str(root)), layout.health(config, config.spec(VARIANT)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    assert command("prepare", root) == 0
    return root


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained") / "root"
    shutil.copytree(prepared, root)
    assert command("train", root) == 0
    return root


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the fixture whose name is given."""
    copy = tmp_path / "root"
    shutil.copytree(request.getfixturevalue(request.param), copy)
    return copy


def test_a_healthy_training_and_its_samples_pass_every_check(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(trained, root)
    assert command("sample", root) == 0
    assert command("sample", root, GUIDED) == 0
    last = last_events(readings(root))
    assert {event.action for event in readings(root)} == {"ok"}
    assert set(last) == {
        *("recipe", "feed", "labels", "start", "finite", "learning"),
        *("pure-noise", "ema", "identity", "sampler", "samples", "label-gain"),
    }


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


def gradients_pile_up(patch: Patch) -> None:
    patch.setattr(torch.optim.AdamW, "zero_grad", lambda _self, **_settings: None)


def frozen_head(patch: Patch) -> None:
    build = training.build_optimizer

    def build_without_head(model: DiT, train: Any) -> torch.optim.AdamW:
        model.final_layer.linear.requires_grad_(False)
        return build(model, train)

    patch.setattr(training, "build_optimizer", build_without_head)


def other_target(target: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Fault:
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


def fed(change: Callable[[StepBatch], StepBatch]) -> Fault:
    """Batches are changed after they are made."""
    batch = BatchMaker.batch
    return lambda patch: patch.setattr(BatchMaker, "batch", lambda self, step: change(batch(self, step)))


def shuffled_labels(batch: StepBatch) -> StepBatch:
    return replace(batch, y_N=batch.y_N[torch.randperm(len(batch.y_N), generator=torch.Generator().manual_seed(0))])


def repeated_data(patch: Patch) -> None:
    samples = BatchMaker.samples
    patch.setattr(BatchMaker, "samples", lambda self, step: samples(self, step) % 64)


def cosine_schedule() -> Schedule:
    """Nichol & Dhariwal 2021, eq. 17."""
    steps = np.arange(1001) / 1000
    bar = np.cos((steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return Schedule(np.clip(1 - bar[1:] / bar[:-1], 0, 0.999), np.arange(1000))


def cosine_training(patch: Patch) -> None:
    patch.setattr(training, "SCHEDULES", {"linear": cosine_schedule})


TRAINING: tuple[tuple[str, Fault, str, str, int], ...] = (
    ("EMA never updated", frozen_ema, "ema", "EMA never changes", 5),
    ("EMA updated every 5th step", seldom_ema, "ema", "does not follow the weights", 5),
    ("EMA in bf16", rounded_ema(torch.bfloat16), "ema", "does not follow the weights", 5),
    ("EMA in fp16", rounded_ema(torch.float16), "ema", "does not follow the weights", 5),
    ("wrong decay", other_decay, "ema", "does not follow the weights", 5),
    ("gradients not zeroed", gradients_pile_up, "start", "gradients are not zeroed", 1),
    ("frozen head", frozen_head, "start", r"the head \(final_layer.linear\) is not trained", 4),
    ("x0 as target", other_target(lambda x0, _: x0), "start", r"the image \(x0\), not with the noise", 1),
    ("loss divided", other_target(lambda _, noise: noise / 2), "start", "first loss is not the power", 1),
    ("noise of another sample", other_target(lambda _, noise: noise.roll(1, 0)), "pure-noise", "does not predict", 10),
    ("positions lost", lost_positions, "start", "positions differs from its formula", 1),
    ("scale factor forgotten", fed(lambda batch: replace(batch, x0_NCHW=batch.x0_NCHW * 5.49)), "feed", "scale", 8),
    ("scale factor twice", fed(lambda batch: replace(batch, x0_NCHW=batch.x0_NCHW * 0.18)), "feed", "scale", 8),
    ("labels shuffled", fed(shuffled_labels), "labels", "do not belong to their images", 8),
    ("labels dropped", fed(lambda b: replace(b, y_N=torch.full_like(b.y_N, 10))), "feed", "dropped labels", 8),
    ("few timesteps", fed(lambda batch: replace(batch, t_N=batch.t_N // 10)), "feed", "timesteps are not uniform", 8),
    ("data written over", repeated_data, "feed", "more often than an epoch allows", 8),
    ("cosine schedule in training", cosine_training, "learning", "no spatial structure", 140),
)


@pytest.mark.parametrize("root", ["prepared"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "check", "cause", "last"), [row[1:] for row in TRAINING], ids=[r[0] for r in TRAINING]
)
def test_a_faulty_training_is_stopped_by_the_check_that_names_it(
    root: Path,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
    fault: Fault,
    check: str,
    cause: str,
    last: int,
) -> None:
    fault(monkeypatch)
    assert command("train", root) == 3
    (stopped,) = [event for event in readings(root) if event.action == "stop"]
    assert (stopped.check, stopped.step <= last) == (check, True), stopped
    assert stopped.message in capsys.readouterr().err
    assert re.search(cause, stopped.message)


def reset_ema(patch: Patch) -> None:
    """The average begins again at the weights when a training resumes."""

    def load(self: Ema, _tensors: object) -> None:
        for average, parameter in zip(self.tensors.values(), self._parameters, strict=True):
            average.copy_(parameter)

    patch.setattr(Ema, "load", load)


def forgotten_optimizer(patch: Patch) -> None:
    patch.setattr(training, "load_optimizer", lambda *_: None)


@pytest.mark.parametrize("root", ["trained"], indirect=True)
@pytest.mark.parametrize(("fault", "cause"), [(reset_ema, "EMA"), (forgotten_optimizer, "optimizer's state")])
def test_a_resume_that_loses_state_is_stopped_before_its_first_step(
    root: Path, monkeypatch: Patch, fault: Fault, cause: str
) -> None:
    fault(monkeypatch)
    assert command("train", root, "train.steps=310") == 3
    stopped = readings(root)[-1]
    assert (stopped.check, stopped.action, stopped.step) == ("identity", "stop", 300)
    assert cause in stopped.message


def unloaded_weights(patch: Patch) -> None:
    patch.setattr(DiT, "load_state_dict", lambda *_, **_settings: None)


def called(change: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Fault:
    """The sampled model sees other inputs."""
    forward = DiT.forward
    return lambda patch: patch.setattr(DiT, "forward", lambda self, x, t, y: forward(self, *change(x, t, y)))


def skipped_map(patch: Patch) -> None:
    respaced = Schedule.respaced

    def without_map(self: Schedule, steps: int, *, ddim: bool = False) -> Schedule:
        return Schedule(respaced(self, steps, ddim=ddim).betas, np.arange(steps))

    patch.setattr(Schedule, "respaced", without_map)


def cosine_sampling(patch: Patch) -> None:
    patch.setattr(generate, "SCHEDULES", {"linear": cosine_schedule})


def wrong_guidance(patch: Patch) -> None:
    guide = reverse.guide
    patch.setattr(reverse, "guide", lambda output, scale, channels: guide(output, 2 - scale, channels))


def wrong_null_label(patch: Patch) -> None:
    draw = generate.sample
    patch.setattr(generate, "sample", lambda *a: draw(*a[:5], 3, *a[6:]))


SAMPLING: tuple[tuple[str, Fault, str, str], ...] = (
    ("weights not loaded", unloaded_weights, "identity", "weights were not loaded"),
    ("timestep over 1000", called(lambda x, t, y: (x, t / 1000, y)), "identity", "not the one that was saved"),
    ("labels off by one", called(lambda x, t, y: (x, t, (y + 1) % 11)), "identity", "not the one that was saved"),
    ("timestep map skipped", skipped_map, "sampler", "does not turn a perfect denoiser"),
    ("betas of another schedule", cosine_sampling, "sampler", "does not turn a perfect denoiser"),
    ("guidance with the wrong sign", wrong_guidance, "sampler", "guidance does not move samples"),
    ("null label wrong", wrong_null_label, "sampler", "class 3: it is taken for the null label"),
)


@pytest.mark.parametrize("root", ["trained"], indirect=True)
@pytest.mark.parametrize(("fault", "check", "cause"), [row[1:] for row in SAMPLING], ids=[row[0] for row in SAMPLING])
def test_a_faulty_sampling_is_stopped_before_a_sample_is_written(
    root: Path, monkeypatch: Patch, fault: Fault, check: str, cause: str
) -> None:
    fault(monkeypatch)
    assert command("sample", root, "sampling.cfg_scale=4") == 3
    stopped = readings(root)[-1]
    assert (stopped.check, stopped.action) == (check, "stop"), stopped
    assert cause in stopped.message
    assert not list(root.rglob("part-*.npz"))


@pytest.mark.parametrize("root", ["prepared"], indirect=True)
def test_a_study_can_turn_a_check_into_a_warning_or_off(root: Path, monkeypatch: Patch) -> None:
    frozen_ema(monkeypatch)
    short = ("train.steps=8", "evaluation.at_steps=[8]")
    assert command("train", root, *short, "health.ema=warn") == 0
    assert {event.action for event in readings(root) if event.check == "ema"} == {"warn"}
    shutil.rmtree(root / "studies")
    assert command("train", root, *short, "health.ema=off") == 0
    assert "ema" not in last_events(readings(root))
