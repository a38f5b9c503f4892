"""A new row in the table of sizes is enough: planned, judged, plotted, and run through a complete study."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_records import fill, study

from dit.claims.results import load_results
from dit.planning.cost import plan
from dit.report import plots
from dit.report.loss_chart import training_losses
from dit.report.style import marker, size_hue
from dit.stages import evaluate, prepare, report, sample, train
from dit.storage import open_store
from dit.study import study_file
from dit.study.paper import PublishedModel, paper
from dit.study.variants import FAMILIES, VARIANTS, Size, resolve, variants_of
from dit.tracking import mlflow_view

DIGITS = Path(__file__).parents[3] / "configs" / "digits.yaml"


def add_size(monkeypatch: pytest.MonkeyPatch, family: str, size: Size) -> None:
    monkeypatch.setitem(FAMILIES, family, (*FAMILIES[family], size))
    for name, run in variants_of(family).items():
        monkeypatch.setitem(VARIANTS, name, run)


def test_a_new_size_is_planned_judged_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add_size(monkeypatch, "DiT", Size("H", 32, 1280, 16))
    variants = ("DiT-S/2", "DiT-B/2", "DiT-L/2", "DiT-XL/2", "DiT-H/2", "DiT-H/4")
    config = study("imagenet256", 1000, (f"variants=[{', '.join(variants)}]",))
    for spec, fid in ((resolve("dit-h-2"), 15.0), (resolve("dit-h-4"), 35.0)):
        inputs = config.dataset.inputs
        published = PublishedModel(fid_400k=fid, gflops=spec.gflops(inputs), parameters=spec.parameters(inputs))
        monkeypatch.setitem(paper().models, spec.name, published)
    assert [planned.variant for planned in plan(config).variants] == list(variants)

    store = open_store(tmp_path)
    fill(store, config)
    report.run(config, store)
    results = load_results(config, store)
    claim = results.verdict.claims[0]
    assert claim.verdict == "supported"
    ordered = [(pair["better"]["variant"], pair["worse"]["variant"]) for pair in claim.numbers["pairs"]]
    assert ordered[-1] == ("DiT-H/2", "DiT-XL/2")

    for chart in (plots.against(results, plots.GFLOPS), training_losses({name: [(1, 1.0)] for name in variants})):
        assert all(f">{name.removeprefix('DiT-')}</text>" in chart.svg for name in variants)
    assert len({marker(resolve(name)) for name in variants[:5]}) == 5
    assert len({size_hue(resolve(name)) for name in variants[:5]}) == 5
    shades = [mlflow_view.colour(name) for name in variants[:5]]
    assert len(set(shades)) == 5
    assert [int(shade[1:3], 16) for shade in shades] == sorted((int(shade[1:3], 16) for shade in shades), reverse=True)


@pytest.mark.slow
def test_a_new_size_goes_from_prepare_to_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add_size(monkeypatch, "mini", Size("H", 7, 112, 7))
    overrides = ["variants=[mini-XL/2, mini-H/2]", "train.steps=2", "train.global_batch=8", "evaluation.at_steps=[2]"]
    overrides += ["evaluation.resamples=40", "sampling.steps=2", "sampling.num_samples=16", "tracking.kind=none"]
    config, store = study_file.load(DIGITS, overrides), open_store(tmp_path)
    prepare.run(config, store)
    for run in config.runs:
        train.run(config, store, run.name)
        sample.run(config, store, run.name)
        evaluate.run(config, store, run.name)
    report.run(config, store)
    assert [variant.run.name for variant in load_results(config, store).variants] == ["mini-XL/2", "mini-H/2"]
