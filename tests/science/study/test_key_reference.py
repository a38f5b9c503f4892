"""The reference of all keys: complete, and the same in the types and on the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dit.cli.commands import run
from dit.study.config import StudyConfig
from dit.study.key_reference import BEGIN, markdown
from dit.study.keys import REQUIRED, all_keys
from dit.study.study_file import load

ROOT = Path(__file__).parents[3]


def leaves(tree: Any, path: str = "") -> set[str]:
    if isinstance(tree, dict) and tree and path not in ("cluster.config_maps", "cluster.secrets", "fit_by_variant"):
        return {leaf for key, value in tree.items() for leaf in leaves(value, f"{path}.{key}".lstrip("."))}
    return {path}


@pytest.mark.parametrize("study", ["digits", "imagenet256"])
def test_every_key_of_a_study_is_in_the_reference(study: str) -> None:
    known = {key.path for key in all_keys(StudyConfig)}
    assert leaves(load(ROOT / f"configs/{study}.yaml").model_dump(mode="json")) <= known


def test_every_key_has_a_meaning() -> None:
    assert [key.path for key in all_keys(StudyConfig) if not key.meaning] == []


def test_a_default_is_the_value_of_a_study_without_the_key() -> None:
    defaults = {key.path: key.default for key in all_keys(StudyConfig)}
    assert (defaults["train.global_batch"], defaults["train.steps"]) == ("256", REQUIRED)
    assert (defaults["dataset.codec.decoder"], defaults["evaluation.reference.kind"]) == ("unset", "dataset")
    assert (defaults["cluster.pod.memory"], defaults["cluster.steps.launch.memory"]) == ("64Gi", "1Gi")


def test_the_page_has_the_tables_of_the_types() -> None:
    _, _, tables = (ROOT / "docs/study-file.md").read_text().partition(BEGIN)
    assert tables.strip() == markdown().strip(), "run `make reference`"


def test_a_page_is_rewritten_below_its_mark(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"A text.\n\n{BEGIN}\n\nold")
    assert run(["keys", "--page", str(page)]) == 0
    assert page.read_text() == f"A text.\n\n{BEGIN}\n\n{markdown()}"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["train.steps"], r"train\.steps: whole number above 0; required\n    Length"),
        (["cluster.tolerations"], r"cluster\.tolerations\[\]\.effect: NoSchedule, "),
        (["dataset.codec"], r"dataset\.codec\.weights: path or address \(kind vae\); required"),
        ([], r"\Astudy: name; required"),
    ],
)
def test_keys_are_printed(arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", *arguments]) == 0
    assert re.search(shown, capsys.readouterr().out)


def test_an_unknown_key_names_the_one_that_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "train.lr"]) == 2
    assert "did you mean train.learning_rate?" in capsys.readouterr().err
