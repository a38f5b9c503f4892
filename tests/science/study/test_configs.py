"""Every study that ships can be read and priced; the ImageNet ones are the paper's protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from dit.cli.commands import run
from dit.study.config import PlanConfig, SamplingConfig, StudyConfig, TrainConfig
from dit.study.study_file import load, load_text

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
IMAGENET = [path for path in CONFIGS if path.stem.startswith("imagenet256")]

HASHES = {
    # Dataset and science, then training, sampling and evaluation of each variant.
    "digits": [
        "d0e1c20caf22 fe88828b1d40",
        "a79ed65e4b06 09a58018b3e1 2cc169c32a62",  # mini-S/2
        "167f560c2927 f48137668cb7 f011e41e6127",  # mini-B/2
        "6c700daf34d4 654b2f58ca46 021b9ed1ca32",  # mini-L/2
        "90ceccc67521 a1c521800658 797f5710b94b",  # mini-XL/2
        "b3e75c3cfed6 4d49c06c67b6 f0a547fae4bd",  # mini-XL/4
    ],
    "imagenet256-52k": [
        "2d7866559c05 e762ef87ef57",
        "cb96dd146cc1 90b1e4c0ed3b 849855fc57d6",  # DiT-B/2
        "d1e90a1c0d36 28fda8e8c36e 6ec31ba7302d",  # DiT-L/2
        "825ff204018e cc45d14eef5a 2b2b79772b59",  # DiT-XL/2
        "833710760b1b acd74a4d9ec1 9aa63b09c697",  # DiT-XL/4
    ],
}
HASHES["imagenet256"] = HASHES["imagenet256-52k"]  # train.steps is in no hash


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    """Each file of configs/ in turn."""
    return Path(request.param)


def test_a_shipped_study_loads_and_reads_back_and_has_the_name_of_its_file(path: Path) -> None:
    config = load(path)
    assert config.study == path.stem
    assert load_text(config.to_yaml()) == config


def test_a_shipped_study_has_a_comment_and_a_description(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert f"{path.parent.name}/{path.name}" in path.read_text() or path.stem == "digits"
    assert load(path).description


def test_a_shipped_study_can_be_planned(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(path)]) == 0
    output = capsys.readouterr().out
    assert all(variant in output for variant in load(path).variants)


def test_the_hashes_of_a_shipped_study_do_not_change(path: Path) -> None:
    """Another hash would make every checkpoint, sample set and metric of the study unusable."""
    config = load(path)
    hashes = [f"{config.dataset_hash()} {config.science_hash()}"]
    for study_run in config.runs:
        hashes.append(
            f"{config.training_hash(study_run)} {config.sampling_hash(study_run)} {config.evaluation_hash(study_run)}"
        )
    assert hashes == HASHES[config.study]


def test_a_later_key_enters_the_hashes_only_where_it_is_not_the_default(path: Path) -> None:
    config = load(path)
    train = config.train.model_copy(update={"schedule": "another"})
    changed = config.model_copy(update={"train": train})
    assert "schedule" not in config.hashed()["train"]
    assert changed.hashed()["train"]["schedule"] == "another"
    assert changed.dataset_hash() == config.dataset_hash()
    assert changed.science_hash() != config.science_hash()
    for study_run in config.runs:
        for hash_of in (StudyConfig.training_hash, StudyConfig.sampling_hash, StudyConfig.evaluation_hash):
            assert hash_of(changed, study_run) != hash_of(config, study_run)


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
    assert all(full.training_hash(study_run) == short.training_hash(study_run) for study_run in full.runs)


def test_the_digits_study_can_decide_all_three_claims() -> None:
    config: StudyConfig = load(next(path for path in CONFIGS if path.stem == "digits"))
    assert len(config.evaluation.at_steps) >= 3
    assert {spec.size for spec in config.specs if spec.patch == 2} == {"S", "B", "L", "XL"}
    assert {spec.patch for spec in config.specs if spec.size == "XL"} == {2, 4}
