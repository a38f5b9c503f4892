"""Every study that ships can be read and priced; the ImageNet ones are the paper's protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from dit.cli.commands import run
from dit.study.config import PlanConfig, SamplingConfig, StudyConfig, TrainConfig
from dit.study.study_file import load, load_text

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
IMAGENET = [path for path in CONFIGS if path.stem.startswith("imagenet256")]


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    """Each file of configs/ in turn."""
    return Path(request.param)


def test_it_loads_and_reads_back_and_is_named_as_its_file(path: Path) -> None:
    config = load(path)
    assert config.study == path.stem
    assert load_text(config.to_yaml()) == config


def test_it_says_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert f"{path.parent.name}/{path.name}" in path.read_text() or path.stem == "digits"
    assert load(path).description


def test_it_can_be_planned(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(path)]) == 0
    output = capsys.readouterr().out
    assert all(variant in output for variant in load(path).variants)


def test_the_imagenet_studies_are_the_papers_protocol() -> None:
    full, short = (load(path) for path in sorted(IMAGENET, key=lambda path: len(path.stem)))
    assert (full.study, short.study) == ("imagenet256", "imagenet256-52k")
    assert (full.train.steps, short.train.steps) == (400_000, 52_000)
    assert full.evaluation.at_steps == (50_000, 100_000, 200_000, 300_000, 400_000)
    assert short.evaluation.at_steps[-1] == 52_000
    for config in (full, short):
        assert config.variants == ("DiT-B/2", "DiT-L/2", "DiT-XL/2", "DiT-XL/4")
        assert config.train.identity() == TrainConfig(steps=1).identity()
        assert config.sampling == SamplingConfig()
        assert config.plan == PlanConfig()
        assert config.evaluation.metric == "fid"
        assert config.dataset.mirror
    assert full.dataset_hash() == short.dataset_hash()
    assert all(full.training_hash(spec) == short.training_hash(spec) for spec in full.specs)


def test_the_digits_study_can_decide_all_three_claims() -> None:
    config: StudyConfig = load(next(path for path in CONFIGS if path.stem == "digits"))
    assert len(config.evaluation.at_steps) >= 3
    assert {spec.size for spec in config.specs if spec.patch == 2} == {"S", "B", "L", "XL"}
    assert {spec.patch for spec in config.specs if spec.size == "XL"} == {2, 4}
