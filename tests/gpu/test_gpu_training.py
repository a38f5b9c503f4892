"""Training on a GPU: losses against a CPU, and memory against the plan."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_processes import SEED, STEPS, VARIANT, Losses, finish, losses, random_step, signalled, start, study

from dit.checkpoints.write import HostCopy
from dit.data.loader import StepBatch
from dit.health.steps import StepLosses
from dit.planning.cost import memory
from dit.runtime.distributed import Ranks
from dit.stages import prepare
from dit.storage import Store, open_store, read_record
from dit.study import layout
from dit.study.config import FitConfig, StudyConfig, TrainConfig
from dit.study.fields import Precision
from dit.study.records import TrainRecord
from dit.study.variants import InputSpec, ModelSpec, resolve
from dit.training.trainer import Trainer

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
LOSS = ("loss",)
DIGITS, IMAGENET = InputSpec(channels=1, size=8, classes=10), InputSpec(channels=4, size=32, classes=1000)


def batches(inputs: InputSpec, size: int, steps: int) -> list[StepBatch]:
    draw = torch.Generator().manual_seed(0)
    shape = (size, inputs.channels, inputs.size, inputs.size)
    made = []
    for step in range(1, steps + 1):
        x0_NCHW, noise_NCHW = (torch.randn(shape, generator=draw) for _ in range(2))
        t_N, y_N = (torch.randint(high, (size,), generator=draw) for high in (1000, inputs.classes))
        made.append(StepBatch(step=step, x0_NCHW=x0_NCHW, t_N=t_N, noise_NCHW=noise_NCHW, y_N=y_N))
    return made


def trainer(
    spec: ModelSpec, inputs: InputSpec, device: torch.device, batch: int, precision: Precision, fit: FitConfig
) -> Trainer:
    train = TrainConfig(steps=1, global_batch=batch, learning_rate=1e-3, precision=precision)
    return Trainer(spec, inputs, train, fit, Ranks(0, 1, 0, device))


def trained(
    variant: str, inputs: InputSpec, device: torch.device, precision: Precision = "fp32", **fit: object
) -> list[StepLosses]:
    """The losses of six steps."""
    built = trainer(resolve(variant), inputs, device, 12, precision, FitConfig.model_validate(fit))
    for batch in batches(inputs, 12, 6):
        built.step(batch)
    return built.window.read()


def near(actual: list[StepLosses], expected: list[StepLosses], relative: float) -> None:
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), rtol=relative, atol=0)


@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize(("variant", "inputs"), [("mini-XL/2", DIGITS), ("DiT-S/2", IMAGENET)])
def test_losses_are_those_of_a_cpu(gpu: torch.device, variant: str, inputs: InputSpec, compiled: str) -> None:
    near(trained(variant, inputs, gpu, compile=compiled), trained(variant, inputs, CPU, compile="off"), 1e-4)


@pytest.mark.parametrize(("precision", "relative"), [("tf32", 2e-3), ("bf16", 2e-2)])
def test_lower_precision_stays_near(gpu: torch.device, precision: Precision, relative: float) -> None:
    exact = trained("DiT-S/2", IMAGENET, CPU, compile="off")
    rounded = trained("DiT-S/2", IMAGENET, gpu, precision, compile="on")
    near(rounded, exact, relative)
    assert rounded != exact


@pytest.mark.parametrize("fit", [{"micro_batch": 5}, {"activation_checkpointing": True}])
def test_what_saves_memory_changes_no_loss(gpu: torch.device, fit: dict[str, object]) -> None:
    near(trained("DiT-S/2", IMAGENET, gpu, **fit), trained("DiT-S/2", IMAGENET, gpu), 1e-4)


def test_checkpoint_copy_keeps_the_values_of_its_step(gpu: torch.device) -> None:
    """Training goes on while the copy is written."""
    first, second = batches(DIGITS, 12, 2)
    built = trainer(resolve(VARIANT), DIGITS, gpu, 12, "fp32", FitConfig())
    built.step(first)
    expected = copied(built.files())
    host = HostCopy()
    for _ in range(2):  # into new buffers, then into the same ones
        taken = host.take(built.files())
    built.step(second)
    for file, tensors in expected.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(taken[file][name], tensor, rtol=0, atol=0)
    name = "final_layer.linear.bias"
    assert not torch.equal(built.ema.tensors[name].cpu(), taken[layout.EMA_WEIGHTS][name])


def copied(files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {file: {name: tensor.cpu().clone() for name, tensor in tensors.items()} for file, tensors in files.items()}


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize(("variant", "size"), [("DiT-B/2", 64), ("DiT-XL/2", 32)])
def test_peak_memory_is_that_of_the_plan(gpu: torch.device, variant: str, size: int, precision: Precision) -> None:
    """The plan's figure includes the device's context, which torch does not count."""
    spec, peaks = resolve(variant), {}
    for compiled in ("on", "off"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fit = FitConfig.model_validate({"compile": compiled})
        built = trainer(spec, IMAGENET, gpu, size, precision, fit)
        for batch in batches(IMAGENET, size, 2):
            built.step(batch)
        peaks[compiled] = torch.cuda.max_memory_allocated() - before
        del built
        planned = memory(spec, IMAGENET, precision, fit, size, compiled=compiled == "on").total
        assert 0.8 * planned < peaks[compiled] < 1.05 * planned, compiled
    assert peaks["on"] < peaks["off"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    opened = open_store(tmp_path_factory.mktemp("gpu"))
    prepare.run(study("any"), opened)
    return opened


def device(store: Store, config: StudyConfig) -> str:
    record = read_record(store, layout.train_record(config, config.run(VARIANT)), TrainRecord)
    assert record is not None
    return record.device


@pytest.fixture(scope="module")
def on_cpu(store: Store) -> Losses:
    """An uninterrupted training without the GPU."""
    config = study("on-cpu")
    finish(start(store, config.study, CUDA_VISIBLE_DEVICES=""))
    assert device(store, config).startswith("cpu")
    return losses(store, config, LOSS)


def test_killed_training_resumes(store: Store, on_cpu: Losses, tmp_path: Path) -> None:
    config = study("killed")
    finish(start(store, config.study, **signalled(tmp_path, signal.SIGKILL, random_step())), -signal.SIGKILL)
    assert max(step for _, step in losses(store, config, LOSS)) < STEPS
    finish(start(store, config.study))
    assert losses(store, config, LOSS) == pytest.approx(on_cpu, rel=1e-4), f"DIT_TEST_SEED={SEED}"
    assert device(store, config) == torch.cuda.get_device_name()


def test_training_of_a_cpu_resumes_on_a_gpu(store: Store, on_cpu: Losses) -> None:
    config = study("moved")
    finish(start(store, config.study, "train.steps=14", CUDA_VISIBLE_DEVICES=""))
    assert device(store, config).startswith("cpu")
    finish(start(store, config.study, "fit.compile=off"))
    assert losses(store, config, LOSS) == pytest.approx(on_cpu, rel=1e-4)
    assert device(store, config) == torch.cuda.get_device_name()
