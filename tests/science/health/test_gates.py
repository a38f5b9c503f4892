"""Every row of the table of checks: a healthy example, a sick one, and its section in docs/health.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from dataset_fixtures import digits_study

from dit.data.measure import load_bounds
from dit.diffusion.schedule import linear_schedule
from dit.health.bounds import Bounds
from dit.health.feed_sums import FeedSums
from dit.health.gates import GATES
from dit.health.identity import LoadedView
from dit.health.learning import EmaView, NoiseView, StartView, WindowView
from dit.health.preparation import SD_MEAN, SD_SCALE, SD_STD, CodecView, DataView
from dit.health.ranks import RanksView, Replica
from dit.health.recipe import RecipeView
from dit.health.samples import SamplesView
from dit.health.steps import NonFinite
from dit.health.stragglers import Pace
from dit.health.yardstick import YardstickView
from dit.results.stages import Work, dataset
from dit.results.state import require
from dit.runtime.distributed import Ranks
from dit.sampling.wiener import draw_wiener
from dit.stages import prepare
from dit.storage import open_store
from dit.study.checks import CheckName
from dit.study.records import Probe
from dit.study.study_file import load

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
ALONE = Ranks(0, 1, 0, CPU)
STUDY = load(ROOT / "configs" / "digits.yaml", [])
SPEC = STUDY.specs[0]
GATE: dict[str, Any] = {gate.name: gate for gate in GATES}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    store = open_store(str(tmp_path_factory.mktemp("gates")))
    prepare.run(digits_study(), store)
    return Work(digits_study(), store)


@pytest.fixture(scope="module")
def bounds(work: Work) -> Bounds:
    measured = load_bounds(work)
    assert measured is not None
    return measured


Pair = tuple[object, object]


def recipe(_: Work, __: Bounds) -> Pair:
    fast = STUDY.train.model_copy(update={"learning_rate": 0.25})
    return RecipeView(STUDY, SPEC), RecipeView(STUDY.model_copy(update={"train": fast}), SPEC)


def codec(_: Work, bounds: Bounds) -> Pair:
    healthy = CodecView(True, 27.0, bounds.mean_C, np.array([0.8]))
    return healthy, replace(healthy, std_C=np.array([5.3]))


def data(work: Work, bounds: Bounds) -> Pair:
    manifest = require(work, dataset(work))
    return DataView(manifest, bounds), DataView(manifest, replace(bounds, duplicates=bounds.count * 7 // 8))


def feed_sums(bounds: Bounds, scale: float, labels: Callable[[Any], Any]) -> object:
    sums = FeedSums(bounds, ALONE)
    random = np.random.default_rng(0)
    x0, y = torch.from_numpy(bounds.probe_NCHW.astype(np.float32)) * scale, bounds.probe_labels_N
    kept = np.where(random.random(len(y)) < 0.1, 10, labels(y))
    t, noise = torch.from_numpy(random.integers(0, 1000, len(y))), random.standard_normal(x0.shape, dtype=np.float32)
    sums.add(x0, t, torch.from_numpy(noise), torch.from_numpy(kept), np.arange(len(y)))
    return sums.view(label_drop=0.1, expected=len(y), epochs=1)


def feed(_: Work, bounds: Bounds) -> Pair:
    return feed_sums(bounds, 1, lambda y: y), feed_sums(bounds, 0.18215, lambda y: y)


def labels(_: Work, bounds: Bounds) -> Pair:
    return feed_sums(bounds, 1, lambda y: y), feed_sums(bounds, 1, np.random.default_rng(1).permutation)


def start(_: Work, __: Bounds) -> Pair:
    healthy = StartView(1.0003, 1.0003, 0.4, 1, False)
    return healthy, replace(healthy, mse=0.4)


def finite(_: Work, __: Bounds) -> Pair:
    return None, NonFinite(7, "mse")


def learning(_: Work, __: Bounds) -> Pair:
    healthy = WindowView(140, 0.3, 64 * 64, 0.8, 125, 125)
    return healthy, replace(healthy, ratio_a=1.2)


def pure_noise(_: Work, __: Bounds) -> Pair:
    healthy = NoiseView(10, 0.9, 0.9, 1.0, 12.5)
    return healthy, replace(healthy, correlation=-0.28)


def ema(_: Work, __: Bounds) -> Pair:
    healthy = EmaView(5, 5, 0.99, [0.12], [0.12], [0.1], [0.3])
    return healthy, replace(healthy, average=[0.1])


def identity(_: Work, __: Bounds) -> Pair:
    norms = (1.0, 2.0, 3.0, 4.0)
    probe = Probe(precision="fp32", raw_loss=0.1, ema_loss=0.11, raw_norms=norms, ema_norms=norms, optimizer_steps=5)
    return LoadedView.of(probe, probe, 1e-4), LoadedView(probe, ema_loss=0.996)


def ranks(_: Work, __: Bounds) -> Pair:
    same = Replica("cpu", {"ema.safetensors": 1})
    return RanksView(7, [same] * 3), RanksView(7, [same, same, same._replace(checksums={"ema.safetensors": 2})])


def progress(_: Work, __: Bounds) -> Pair:
    healthy = Pace(("a", "b"), (0.1, 0.12), ())
    return healthy, replace(healthy, seconds=(0.1, 0.3), slow_since=((1, 40),))


def sampler(_: Work, bounds: Bounds) -> Pair:
    healthy = draw_wiener(STUDY, bounds, CPU)
    return healthy, replace(healthy, unlabelled_NCHW=healthy.unlabelled_NCHW.clip(-0.7, 0.7))


def samples(_: Work, bounds: Bounds) -> Pair:
    healthy = SamplesView(bounds, bounds.probe_NCHW[:16].astype(np.float32), 0.7, 0.0, 0.8, np.linspace(0.01, 0.02, 64))
    return healthy, replace(healthy, latents_NCHW=healthy.latents_NCHW * 200)


def label_gain(work: Work, bounds: Bounds) -> Pair:
    healthy = samples(work, bounds)[0]
    assert isinstance(healthy, SamplesView)
    return healthy, replace(healthy, label_gains_N=np.array([-0.1, 0.1, 0.05, -0.06]))


def yardstick(_: Work, __: Bounds) -> Pair:
    healthy = YardstickView("fid", 12.0, 10.0, 309.0)
    return healthy, replace(healthy, real=300.0)


EXAMPLES: dict[str, Callable[[Work, Bounds], Pair]] = {
    "recipe": recipe,
    "codec": codec,
    "data": data,
    "feed": feed,
    "labels": labels,
    "start": start,
    "finite": finite,
    "learning": learning,
    "pure-noise": pure_noise,
    "ema": ema,
    "identity": identity,
    "ranks": ranks,
    "sampler": sampler,
    "samples": samples,
    "label-gain": label_gain,
    "yardstick": yardstick,
    "progress": progress,
}


@pytest.mark.parametrize("name", [gate.name for gate in GATES])
def test_a_check_passes_its_healthy_example_and_names_its_sick_one(name: CheckName, work: Work, bounds: Bounds) -> None:
    gate = GATE[name]
    healthy, sick = EXAMPLES[name](work, bounds)
    passed, failed = gate.read(healthy), gate.read(sick)
    assert passed is not None
    assert passed.verdict == "ok", passed
    assert failed is not None
    assert failed.verdict == ("warn" if name in ("label-gain", "progress") else "stop")
    message = failed.message(name)
    assert failed.cause in message
    assert failed.advice
    assert failed.advice in message


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"fed": 32}, "fed 32 samples instead of 64: the data of a rank are missing"),
        ({"mse": 0.98}, "that of rank 1's samples alone"),
        ({"mse": 0.5}, "2 times too small"),
        ({"first_update": 100.0}, "learning rate is 100 times train.learning_rate"),
    ],
)
def test_a_first_step_that_is_wrong_is_named_by_its_cause(change: dict[str, Any], cause: str) -> None:
    healthy = StartView(
        1.0, 1.0, 0.4, 2, False, share_powers=(1.02, 0.98), fed=64, global_batch=64, first_update=0.9999
    )
    assert GATE["start"].read(healthy).verdict == "ok"
    assert cause in GATE["start"].read(replace(healthy, **change)).cause


def test_latents_of_another_size_are_told_from_those_of_another_dataset(bounds: Bounds) -> None:
    view: Any = feed_sums(bounds, 0.18, lambda y: y)
    assert "0.18 times as large" in GATE["feed"].read(view).cause
    two = replace(
        bounds, **{name: np.repeat(getattr(bounds, name), 2) for name in ("mean_C", "power_C", "power_std_C")}
    )
    other = replace(view, bounds=two, mean_C=np.repeat(bounds.mean_C, 2), power_C=bounds.power_C * np.array([1.0, 4.0]))
    assert "differs between channels" in GATE["feed"].read(other).cause


@pytest.mark.parametrize(("few", "verdict"), [(True, "ok"), (False, "stop")])
def test_the_latents_of_a_few_images_are_not_compared(bounds: Bounds, few: bool, verdict: str) -> None:
    """The spread of two latents does not tell how far the same two, drawn again, may be from them."""
    measured = replace(bounds, count=2) if few else bounds
    view: Any = replace(feed_sums(bounds, 1, lambda y: y), bounds=measured, mean_C=bounds.mean_C + 1)
    assert GATE["feed"].read(view).verdict == verdict


def test_latents_that_are_not_finite_are_named(work: Work, bounds: Bounds) -> None:
    assert "not finite" in GATE["feed"].read(feed_sums(bounds, np.nan, lambda y: y)).cause
    broken = replace(bounds, power_C=np.full_like(bounds.power_C, np.nan))
    assert "not finite" in GATE["data"].read(DataView(require(work, dataset(work)), broken)).cause


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.4, False)])
def test_latents_of_stable_diffusion_are_compared_with_the_published_table(factor: float, passes: bool) -> None:
    mean, std, error = SD_SCALE * np.array(SD_MEAN), SD_SCALE * np.array(SD_STD) * factor, np.full(4, 0.01)
    reading = GATE["codec"].read(CodecView(True, 27.0, mean, std, error, error))
    assert (reading.verdict, "published one" in reading.cause) == ("ok" if passes else "warn", not passes)


def test_samples_of_a_model_that_has_not_learned_are_no_alarm_unless_they_are_noise(bounds: Bounds) -> None:
    x = bounds.probe_NCHW[:16].astype(np.float32)
    assert GATE["samples"].read(SamplesView(bounds, x * 2.5, 1.36, 0.0)).verdict == "ok"
    assert GATE["samples"].read(SamplesView(bounds, x * 2.5, 0.75, 0.0)).verdict == "stop"
    assert GATE["samples"].read(SamplesView(bounds, x * 250, 1.36, 0.0)).verdict == "warn"


def test_labels_are_not_asked_for_where_they_explain_next_to_nothing(bounds: Bounds) -> None:
    x, none = bounds.probe_NCHW[:16].astype(np.float32), np.array([-0.1, 0.1, 0.05, -0.06])
    assert GATE["label-gain"].read(SamplesView(bounds, x, 0.75, 0.0, 0.8, none)).verdict == "warn"
    assert GATE["label-gain"].read(SamplesView(bounds, x, 0.75, 0.0, 0.999, none)) is None


def test_labels_are_not_judged_where_the_dataset_has_too_little_class_information(bounds: Bounds) -> None:
    view: Any = feed_sums(bounds, 1, np.random.default_rng(1).permutation)
    many = replace(bounds, count=bounds.count * 200)
    assert GATE["labels"].read(view).verdict == "stop"
    assert GATE["labels"].read(replace(view, bounds=many)) is None


def test_every_check_of_a_study_file_is_a_row_of_the_table_and_a_section_of_the_page() -> None:
    names = [gate.name for gate in GATES]
    assert names == list(get_args(CheckName))
    page = (ROOT / "docs" / "health.md").read_text()
    assert re.findall(r"^### (\d+) `([a-z-]+)`$", page, flags=re.M) == [(str(g.number), g.name) for g in GATES]
    for section in re.split(r"^### ", page, flags=re.M)[1:]:
        for part in ("Measures", "Bound", "Margin", "Catches", "Looks the same", "Do"):
            assert f"**{part}.**" in " ".join(section.split()), (section.splitlines()[0], part)


def test_messages_of_checks_are_one_line(work: Work, bounds: Bounds) -> None:
    for gate in GATES:
        failed = gate.read(EXAMPLES[gate.name](work, bounds)[1])
        assert failed is not None
        assert "\n" not in failed.message(gate.name)


def test_expected_samples_of_a_chain_keep_the_dataset(bounds: Bounds) -> None:
    """Many steps of the best denoiser give nearly the dataset's own variance."""
    from dit.health.sampler import coefficient_variances, expected_moments

    variance = coefficient_variances(bounds)
    config = STUDY.sampling.model_copy(update={"steps": 1000})
    spread, reached = expected_moments(variance, config, linear_schedule().alphas_cumprod)
    assert np.sqrt(spread.mean() / variance.mean()) == pytest.approx(1, abs=0.02)
    assert reached.min() > 0.95
