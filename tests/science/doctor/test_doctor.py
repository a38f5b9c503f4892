"""What the doctor says of a short training of the digits, whole and damaged, in three formats."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from s3_proxy import BUCKET

from bench.doctor_cases import FORMATS, expected, opened, settings, trained
from bench.doctor_faults import CASES, STUDY, VARIANT, Case, Parts
from dit.cli.commands import run
from dit.diffusion.schedule import linear_schedule
from dit.doctor.bounds import open_bounds
from dit.doctor.examine import examine
from dit.doctor.interpretations import INTERPRETATIONS, noise_of, reorder, signal_and_noise
from dit.doctor.latents import LatentProbe, judge_labels
from dit.doctor.subject import Claims, Subject, open_subject
from dit.health.sampler import WienerDenoiser
from dit.storage.s3 import S3Store
from dit.study import layout

STEPS = 300
HEAD = "final_layer.linear"
Trained = tuple[Path, Subject, Parts]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("doctor")
    assert run(["prepare", str(STUDY), "--root", str(root)]) == 0
    return root, *trained(root, "healthy", steps=STEPS)


def headline(healthy: Trained, parts: Parts, kind: str, folder: Path, latents: int = 64) -> str:
    root, subject, _ = healthy
    one = opened(kind, folder, subject, parts)
    return examine(one, open_bounds(str(STUDY), one, str(root)), latents=latents).headline


def copy(parts: Parts) -> Parts:
    return {file: {name: tensor.clone() for name, tensor in tensors.items()} for file, tensors in parts.items()}


@pytest.mark.parametrize("kind", FORMATS[1:])
@pytest.mark.parametrize("case", [case for case in CASES if case.patch is None], ids=lambda case: case.name)
def test_damage_is_named_in_both_foreign_formats(case: Case, kind: str, healthy: Trained, tmp_path: Path) -> None:
    parts = copy(healthy[2])
    if case.damage is not None:
        case.damage(parts)
    assert re.search(expected(case, kind), headline(healthy, parts, kind, tmp_path))


def output_patches(weights: dict[str, torch.Tensor]) -> None:
    """As if the model had been trained with patches in the order channel, row, column."""
    for name in (f"{HEAD}.weight", f"{HEAD}.bias"):
        rows = weights[name]
        weights[name] = (
            rows.view(2, 2, 2, *rows.shape[1:]).permute(2, 0, 1, *range(3, rows.dim() + 2)).reshape(rows.shape)
        )


def swapped_positions(weights: dict[str, torch.Tensor]) -> None:
    weights["pos_embed"] = weights["pos_embed"].view(1, 4, 4, -1).transpose(1, 2).reshape(1, 16, -1)


def low_precision(weights: dict[str, torch.Tensor]) -> None:
    weights.update({name: tensor.bfloat16().float() for name, tensor in weights.items()})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (output_patches, "sick.*trained with output patches in the order"),
        (swapped_positions, "sick.*positions are scrambled: rows and columns are swapped"),
        (low_precision, "healthy, with a warning.*every value is one of bf16: stored in bf16"),
    ],
)
def test_what_a_published_file_was_trained_with_is_named(
    change: Callable[[dict[str, torch.Tensor]], None], line: str, healthy: Trained, tmp_path: Path
) -> None:
    parts = copy(healthy[2])
    change(parts[layout.EMA_WEIGHTS])
    assert re.search(line, headline(healthy, parts, "published", tmp_path, latents=256))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["EMA updated every 5th step", "t / 1000 in training", "one class trained", "x0 as target"]
)
def test_a_faulty_training_is_named(name: str, healthy: Trained, tmp_path: Path) -> None:
    root, *_ = healthy
    case = next(case for case in CASES if case.name == name)
    subject, parts = trained(root, "faulty", case.patch, STEPS)
    shutil.rmtree(root / "studies" / "faulty")
    assert re.search(case.cause, headline((root, subject, parts), parts, "official", tmp_path))


def test_the_command_ends_with_0_3_or_2(healthy: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, subject, parts = healthy
    words = [word for override in settings("healthy", STEPS) for word in ("--set", override)]
    step = ["--variant", VARIANT, "--step", str(STEPS), "--root", str(root), "--latents", "64"]
    assert run(["doctor", str(STUDY), *step, *words]) == 0
    assert re.match(r"\S+: healthy: 19 of 19 readings\n", out := capsys.readouterr().out)
    assert "output patches (c, p, q)" in out
    broken = copy(parts)
    broken[layout.EMA_WEIGHTS][f"{HEAD}.weight"].zero_()
    opened("published", tmp_path, subject, broken)
    assert run(["doctor", str(tmp_path / "published.pt"), "--file-only"]) == 3
    said = capsys.readouterr().out
    assert "published.pt: sick: EMA: the head" in said
    assert "not checked: what the model makes of noise and latents" in said
    (tmp_path / "words.pt").write_text("words")
    for arguments in ([str(tmp_path / "words.pt")], [str(STUDY), "--root", str(tmp_path)], [str(tmp_path)]):
        assert run(["doctor", *arguments]) == 2
    assert run(["doctor", str(tmp_path / "published.pt"), "--dataset", str(tmp_path)]) == 2


def test_a_folder_is_opened_with_its_studys_recipe_and_data_and_a_copy_without(
    healthy: Trained, s3_store: S3Store, tmp_path: Path
) -> None:
    root, known, _ = healthy
    folder = root / layout.checkpoint(known.config, known.config.run(known.spec.name), STEPS) if known.config else root
    one = open_subject(str(folder), Claims())
    assert (one.decay, one.step, one.spec) == (known.decay, STEPS, known.spec)
    assert open_bounds(None, one, "unused") is not None
    shutil.copytree(folder, tmp_path / "copied")
    assert open_subject(str(tmp_path / "copied"), Claims()).decay is None
    for path in folder.iterdir():
        s3_store.upload(path, f"step-{STEPS:08d}/{path.name}")
    remote = open_subject(f"s3://{BUCKET}/root/step-{STEPS:08d}", Claims())
    assert remote.raw is not None
    assert one.raw is not None
    assert all(torch.equal(tensor, one.raw[name]) for name, tensor in remote.raw.items())


@pytest.mark.parametrize(("shift", "cause"), [(0, ""), (1, "labels one above"), (-1, "labels one below")])
def test_another_numbering_of_the_labels_is_named(shift: int, cause: str, healthy: Trained) -> None:
    """The best denoiser that knows the classes, and counts them otherwise than the dataset."""
    root, subject, _ = healthy
    bounds = open_bounds(None, subject, str(root))
    assert bounds is not None
    wiener = WienerDenoiser(bounds, linear_schedule(), torch.device("cpu"))
    reading = judge_labels(
        LatentProbe(bounds, torch.device("cpu"), 256), lambda x, t, y: wiener(x, t, (y - shift) % 10)
    )
    assert reading is not None
    assert cause in reading.cause
    assert bool(reading.cause) == bool(cause)


def test_an_interpretation_recovers_the_noise_from_a_perfect_output() -> None:
    x0, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for one in INTERPRETATIONS:
        signal, level = (float(factors[600]) for factors in signal_and_noise(one.chain))
        x = signal * x0 + level * noise
        perfect = {
            "noise": noise, "x0": x0, "v": signal * noise - level * x0, "data - noise": x0 - noise,
            "noise - data": noise - x0,
        }[one.target]  # fmt: skip
        recovered = noise_of(one.target, perfect, x, torch.tensor(signal), torch.tensor(level))
        torch.testing.assert_close(recovered, noise, msg=one.name, rtol=1e-4, atol=1e-4)
    assert signal_and_noise("linear")[0] ** 2 == pytest.approx(linear_schedule().alphas_cumprod)


def test_reordered_patches_hold_the_same_values_channel_first() -> None:
    x = torch.arange(12.0).view(1, 3, 2, 2)
    assert reorder(x, 2).flatten().tolist() == x.permute(0, 2, 3, 1).flatten().tolist()
