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


def test_samples_of_another_decoder_are_refused_before_any_step(tmp_path: Path) -> None:
    config, store = study(), open_store(tmp_path / "root")
    fill(store, config)
    assert unfinished(Work(config, store)) == []
    weights = pretend_autoencoder(tmp_path / "vae", b"other")
    other = study(overrides=(f"dataset.codec.weights={weights}",))
    with pytest.raises(MismatchError, match="decoded with decoder-of-the-test"):
        unfinished(Work(other, store))
