"""Errors before and in the steps of a study on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_fixtures import pretend_autoencoder
from study_records import fill, study

from dit.errors import MismatchError
from dit.results.stages import Work
from dit.results.state import unfinished
from dit.storage import open_store
from dit.study.study_file import load
from pipelines.step import submitted
from pipelines.step.step import run_step


def test_samples_of_another_decoder_are_refused_before_any_step(tmp_path: Path) -> None:
    config, store = study(), open_store(tmp_path / "root")
    fill(store, config)
    assert unfinished(Work(config, store)) == []
    weights = pretend_autoencoder(tmp_path / "vae", b"other")
    other = study(overrides=(f"dataset.codec.weights={weights}",))
    with pytest.raises(MismatchError, match="decoded with decoder-of-the-test"):
        unfinished(Work(other, store))


def test_a_step_without_events_prints_its_error_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = submitted.write(load(Path(__file__).parents[3] / "configs/digits.yaml"), open_store(tmp_path))
    with pytest.raises(SystemExit) as caught:
        run_step("train", address, "mini-s-2")
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("dit: train mini-S/2: ")
    assert errors.count("\n") == 1
