"""A run is a variant with a training seed: its name, its addresses and its hashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dit.errors import ConfigError
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.runs import full_name
from dit.study.study_file import load, load_text

DIGITS = Path(__file__).parents[3] / "configs" / "digits.yaml"
TWO = "variants=[mini-S/2, mini-B/2]"


def study(*overrides: str) -> StudyConfig:
    return load(DIGITS, [TWO, *overrides])


@pytest.mark.parametrize(
    ("overrides", "seeds"),
    [((), (0,)), (("seeds=3",), (0, 1, 2)), (("seeds=2", "train.seed=5"), (5, 6)), (("seeds=[0, 7]",), (0, 7))],
)
def test_a_number_of_seeds_counts_from_the_studys_own_and_a_list_is_as_it_is(
    overrides: tuple[str, ...], seeds: tuple[int, ...]
) -> None:
    config = study(*overrides)
    assert [(run.spec.name, run.seed) for run in config.runs] == [(v, s) for v in config.variants for s in seeds]
    assert load_text(config.to_yaml()) == config


@pytest.mark.parametrize(
    "value", ["0", "-1", "[]", "[1, 1]", "[-1]", "1.5", "true", "[0.5]", "three", f"[{2**63}]", "null"]
)
def test_seeds_that_are_none_are_refused_in_one_line(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*seeds[^\n]*$"):
        study(f"seeds={value}")


def test_the_run_of_the_studys_own_seed_has_the_addresses_of_a_study_of_one_seed() -> None:
    one, several = study(), study("seeds=[7, 0]")
    (base,) = several.runs_of("mini-S/2", 0)
    assert layout.variant(several, base) == layout.variant(one, one.run("mini-S/2")) == "studies/digits/mini-s-2"
    assert [run.name for run in several.runs_of("mini-S/2")] == ["mini-S/2 seed 7", "mini-S/2"]
    assert layout.variant(several, several.run("mini-S/2", 7)) == "studies/digits/mini-s-2-seed-7"


def test_more_seeds_change_no_hash_and_another_run_has_the_hashes_of_a_study_of_its_seed() -> None:
    one, several, alone = study(), study("seeds=3"), study("train.seed=2")
    for hash_of in (StudyConfig.training_hash, StudyConfig.sampling_hash, StudyConfig.evaluation_hash):
        assert hash_of(several, several.run("mini-B/2")) == hash_of(one, one.run("mini-B/2"))
        assert hash_of(several, several.run("mini-B/2", 2)) == hash_of(alone, alone.run("mini-B/2"))
        assert len({hash_of(several, run) for run in several.runs}) == len(several.runs)
    assert several.science_hash() == one.science_hash()


def test_all_runs_are_trained_with_their_seed_and_sampled_with_the_same_noise() -> None:
    config = study("seeds=3", "sampling.seed=4")
    assert [config.recipe(run).seed for run in config.runs] == [0, 1, 2, 0, 1, 2]
    folders = [layout.samples(config, run, 500).removeprefix(layout.variant(config, run)) for run in config.runs]
    assert set(folders) == {f"/samples/{layout.step(500)}/{layout.protocol(config.sampling)}"}
    assert "seed-4" in folders[0]


def test_a_run_is_found_by_its_name_its_slug_and_its_seed() -> None:
    config = study("seeds=3")
    for run in config.runs:
        assert run == config.run(run.name) == config.run(run.slug) == config.run(run.spec.name, run.seed)
        assert full_name(run.slug) == run.name
    with pytest.raises(ConfigError, match=r"^seed 9: is not in study digits, which has 0, 1, 2$"):
        config.run("mini-S/2", 9)
    with pytest.raises(ConfigError, match="--seed"):
        study("seeds=[3, 4]").run("mini-S/2")
