"""Every row of a table can be named in a study file, and is computed and shown."""

from __future__ import annotations

import re
from importlib import resources
from pkgutil import resolve_name
from typing import get_args

import pytest

from dit.diffusion.schedule import SCHEDULES
from dit.metrics.table import FEATURES, FEWEST_IMAGES, METRICS
from dit.planning.accelerators import KNOWN, accelerator, data_sheet_peak
from dit.planning.stages import FEATURE_GFLOPS, INTERVAL_SECONDS
from dit.report.style import HUES
from dit.study.config import DIFFUSION_STEPS, EvaluationConfig, PlanConfig, TrainConfig


def test_the_study_file_accepts_exactly_the_schedules_of_the_table() -> None:
    assert set(get_args(TrainConfig.model_fields["schedule"].annotation)) == SCHEDULES.keys()


def test_every_extractor_has_its_dimensions_its_fewest_images_and_its_cost() -> None:
    names = set(get_args(EvaluationConfig.model_fields["extractor"].annotation))
    for rows in (FEATURES, FEWEST_IMAGES, FEATURE_GFLOPS, INTERVAL_SECONDS):
        assert rows.keys() == names


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_has_all_steps_and_ends_in_noise(name: str) -> None:
    chain = SCHEDULES[name]()
    assert chain.timestep_map.tolist() == list(range(DIFFUSION_STEPS))
    assert (chain.betas > 0).all()
    assert (chain.betas < 1).all()
    assert chain.alphas_cumprod[0] > 0.99
    assert chain.alphas_cumprod[-1] < 0.01


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_a_label_and_a_function_that_computes_it(name: str) -> None:
    assert METRICS[name].name == name
    assert METRICS[name].label != name
    assert callable(resolve_name(METRICS[name].function))


@pytest.mark.parametrize("extractor", get_args(EvaluationConfig.model_fields["extractor"].annotation))
def test_the_primary_metric_of_a_study_is_better_when_lower(extractor: str) -> None:
    metric = METRICS[EvaluationConfig.model_validate({"at_steps": (1,), "extractor": extractor}).metric]
    assert metric.lower_is_better
    assert metric.extractor == extractor


def test_each_hue_has_a_colour_on_light_and_on_dark_ground() -> None:
    css = resources.files("dit.report").joinpath("report.css.j2").read_text(encoding="utf-8")
    defined = re.findall(r"--hue-(\d+): #[0-9a-f]{6};", css)
    assert sorted(defined) == sorted(str(hue) for hue in [*range(HUES), *range(HUES)])


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "cpu"])
def test_a_plan_and_a_training_count_with_the_same_peak(name: str) -> None:
    chip, _, memory = name.rpartition("-")
    peak = data_sheet_peak(f"NVIDIA {chip} {memory}B HBM", "bf16")
    assert accelerator(PlanConfig(accelerator=name), "bf16").peak == peak
