"""Plans agree with published costs and with measured memory, and follow the study."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from study_records import study

from dit.errors import ConfigError
from dit.planning.accelerators import KNOWN
from dit.planning.cost import memory, plan
from dit.planning.tables import hours_table, model_table, show_plan
from dit.study.config import FitConfig, StudyConfig
from dit.study.study_file import load, load_text
from dit.study.variants import VARIANTS, InputSpec, resolve

LATENT = InputSpec(channels=4, size=32, classes=1000)
XL = VARIANTS["DiT-XL/2"]


def imagenet(*overrides: str) -> StudyConfig:
    """52,000 steps of the paper's recipe in bf16, on eight A100 at 40 % of their peak."""
    shorter = ("train.steps=52000", "train.precision=bf16", "sampling.precision=bf16")
    return study(classes=1000, overrides=(*shorter, *overrides))


# Training MACs, training hours and sampling hours of the four models, as computed from the paper's formula for eight
# A100 at 40 % of their bf16 peak: 52,000 steps of batch 256, and 50,000 images of 250 steps without guidance.
REFERENCE = {
    "DiT-B/2": (0.92e18, 0.5, 0.16),
    "DiT-L/2": (3.22e18, 1.8, 0.56),
    "DiT-XL/2": (4.74e18, 2.6, 0.83),
    "DiT-XL/4": (1.16e18, 0.6, 0.20),
}


def test_compute_and_hours_agree_with_the_papers_formula() -> None:
    for variant in plan(imagenet()).variants:
        macs, train_hours, sample_hours = REFERENCE[variant.variant]
        assert variant.training_macs == pytest.approx(macs, rel=5e-3)
        assert variant.training_flops == 2 * variant.training_macs
        assert variant.train_hours == pytest.approx(train_hours, abs=0.05)
        assert variant.sample_hours == pytest.approx(sample_hours, abs=0.006)
        assert variant.true_gflops == 2 * variant.gflops


def test_totals_are_the_sums() -> None:
    planned = plan(imagenet())
    assert planned.train_hours == pytest.approx(sum(variant.train_hours for variant in planned.variants))
    assert planned.sample_hours == pytest.approx(sum(variant.sample_hours for variant in planned.variants))
    assert planned.training_macs == pytest.approx(10.04e18, rel=5e-3)


@pytest.mark.parametrize(
    ("override", "train_factor", "sample_factor"),
    [
        ("sampling.cfg_scale=1.5", 1, 2),
        ("evaluation.at_steps=[10000, 52000]", 1, 2),
        # Evaluated at its own last step, too.
        ("train.steps=104000", 2, 2),
        ("seeds=3", 3, 3),
        ("plan.count=16", 0.5, 0.5),
        ("plan.utilisation=0.8", 0.5, 0.5),
        ("plan.peak_tflops=156", 2, 2),
        ("train.precision=tf32", 2, 1),
        ("sampling.precision=tf32", 1, 2),
        ("fit.micro_batch=4", 1, 1),
    ],
)
def test_hours_follow_the_study(override: str, train_factor: float, sample_factor: float) -> None:
    before, after = plan(imagenet()), plan(imagenet(override))
    assert after.train_hours == pytest.approx(train_factor * before.train_hours)
    assert after.sample_hours == pytest.approx(sample_factor * before.sample_hours)


@pytest.mark.parametrize(
    ("variant", "compiled", "gib"),
    [("DiT-XL/2", False, 115.9), ("DiT-XL/2", True, 83.3), ("DiT-L/2", True, 62.6), ("DiT-B/2", True, 23.1)],
)
def test_memory_is_what_a_gpu_held(variant: str, compiled: bool, gib: float) -> None:
    """The peak of a bf16 step at batch 256 on an H200: bench/results/gpu-h200.md."""
    planned = memory(resolve(variant), LATENT, "bf16", FitConfig(), 256, compiled=compiled)
    assert (planned.total - planned.workspace) / 2**30 == pytest.approx(gib, rel=0.05)


def test_memory_holds_the_states_and_grows_with_what_is_kept() -> None:
    fit = FitConfig()
    base = memory(XL, LATENT, "fp32", fit, 8)
    states = base.weights + base.gradients + base.optimizer + base.ema
    assert states == 20 * XL.parameters(LATENT)
    assert memory(XL, LATENT, "fp32", fit, 16).activations == 2 * base.activations
    assert memory(XL, LATENT, "bf16", fit, 8).activations < base.activations
    checkpointed = fit.model_copy(update={"activation_checkpointing": True})
    assert memory(XL, LATENT, "fp32", checkpointed, 8).activations < 0.25 * base.activations
    plain = memory(XL, LATENT, "fp32", fit.model_copy(update={"attention": "plain"}), 8)
    probabilities = 8 * (XL.depth + 1) * XL.heads * XL.tokens(LATENT) ** 2 * 4
    assert plain.activations - base.activations == probabilities


def test_batch_128_of_xl_2_needs_checkpointing_on_80_gib_in_float32() -> None:
    """As users of the public code found on an A100."""
    one = ("plan.count=1", "train.global_batch=128", "train.precision=fp32", "variants=[DiT-XL/2]")
    [whole] = plan(imagenet(*one)).variants
    assert not whole.fits
    assert whole.largest_micro_batch == 64
    [checkpointed] = plan(imagenet(*one, "fit.activation_checkpointing=true")).variants
    assert checkpointed.fits


def test_a_model_that_does_not_fit_has_a_note_with_what_would() -> None:
    notes = " ".join(plan(imagenet("plan.count=1")).notes)
    assert "DiT-XL/2 does not fit: micro_batch=256" in notes
    assert "set fit.micro_batch=128" in notes
    assert "DiT-B/2 does not fit" not in notes
    tiny = plan(imagenet("plan.memory_gib=1"))
    assert {variant.largest_micro_batch for variant in tiny.variants} == {0}
    assert "activation_checkpointing=true" in " ".join(tiny.notes)


def test_the_largest_micro_batch_divides_the_devices_share() -> None:
    for variant in plan(imagenet("train.global_batch=384")).variants:
        assert variant.micro_batch == 48
        assert variant.largest_micro_batch == 16


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("plan.accelerator=A100",), r"plan.accelerator='A100': .*known are A100-40G, A100-80G, .*, cpu"),
        (("plan.accelerator=cpu",), r"plan.peak_tflops .* plan.memory_gib"),
        (("plan.accelerator=cpu", "plan.peak_tflops=0.4"), "plan.memory_gib"),
        (("plan.count=3",), r"train.global_batch=256 is not divisible by plan.count=3"),
    ],
)
def test_a_plan_that_is_not_valid_is_one_line(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(imagenet(*overrides))


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_every_known_accelerator_has_every_precision(name: str, precision: str) -> None:
    stated = ("plan.peak_tflops=0.4", "plan.memory_gib=16") if name == "cpu" else ()
    planned = plan(imagenet(f"plan.accelerator={name}", f"train.precision={precision}", *stated))
    assert planned.train_hours > 0


def test_every_stage_has_its_hours_and_the_disk_its_parts() -> None:
    planned = plan(study("imagenet256", 1000, ("evaluation.reference={kind: adm, path: a.npz}",)))
    assert planned.hours == pytest.approx(
        planned.prepare_hours
        + planned.train_hours
        + planned.sample_hours
        + planned.decode_hours
        + planned.evaluate_hours
    )
    # 1,281,167 images and their mirror images, 136.4 GMACs each, on eight A100 at 40 % of their TF32 peak.
    assert planned.prepare_hours == pytest.approx(1_281_167 * 2 * 136.4e9 * 2 / (8 * 0.4 * 156e12) / 3600)
    # 313 shards of 140 MB; 16 bytes per parameter in two evaluated and two other checkpoints; uint8 images.
    assert planned.disk.shards == pytest.approx(313 * 140e6, rel=0.05)
    assert planned.disk.checkpoints == pytest.approx(4 * 16 * (130.5e6 + 458.1e6 + 675.1e6 + 675.1e6), rel=0.01)
    assert planned.disk.samples == 8 * 50_000 * 3 * 256**2


def test_a_dataset_of_unknown_size_is_said_and_not_guessed() -> None:
    planned = plan(study())
    assert planned.prepare_hours is None
    assert planned.disk.shards is None
    assert "A million images take the autoencoder" in " ".join(planned.notes)


def digits(*overrides: str) -> StudyConfig:
    return load(Path(__file__).parents[3] / "configs/digits.yaml", overrides)


def test_the_digits_are_planned_for_this_machines_cpu_not_for_a100s(capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan(digits())
    cores = len(os.sched_getaffinity(0))
    assert (planned.accelerator.name, planned.count) == ("cpu", cores)
    # README: five minutes on two cores, of which the processes' starts are one.
    assert 2 < planned.hours * 60 * cores / 2 < 8
    show_plan(digits())
    out = " ".join(capsys.readouterr().out.split())
    assert "A100" not in out
    assert "GPU-hours" not in out.replace("no GPU-hours", "")
    assert plan(load_text(digits().to_yaml())).accelerator.name == "cpu"
    assert plan(digits("plan.accelerator=H100-80G")).accelerator.name == "H100-80G"


def test_the_tables_have_a_row_for_every_variant_and_one_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    config = imagenet()
    for columns, rows in (model_table(plan(config)), hours_table(plan(config))):
        assert [row[0] for row in rows] == [*config.variants, "all"]
        assert all(len(row) == len(columns) for row in rows)
    show_plan(config)
    out = capsys.readouterr().out
    for shown in ("675 M", "9.47e18", "8 x A100-80G", "2.6 h", "GPU-hours", "Decoding", " GB"):
        assert shown in out, shown


def test_a_job_that_cannot_share_the_batch_is_refused_where_the_study_gives_its_size() -> None:
    with pytest.raises(ConfigError, match=r"global_batch=256 is not divisible by the 3 processes of cluster\.replicas"):
        plan(imagenet("cluster.replicas=3"))
    # Without a size of its own, the study may be for one machine.
    plan(imagenet("train.global_batch=60", "plan.count=4"))
