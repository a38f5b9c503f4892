"""The pictures that a training draws: when, of what, and without a trace in the training."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from dit.data.loader import TrainingStream
from dit.data.shard_set import ShardSet
from dit.runtime.distributed import session
from dit.sampling import grid
from dit.stages import prepare, train
from dit.storage import Store, open_store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.study_file import load as load_study
from dit.training.preview import moments
from dit.training.trainer import Trainer

DIGITS = Path(__file__).parents[3] / "configs" / "digits.yaml"
VARIANT = "mini-S/2"
SAMPLES = 12
"""Fewer than a picture holds."""
STEPS = [1, 2, 5, 10, 60, 100]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, Store]:
    overrides = ["train.steps=100", "train.global_batch=8", "evaluation.at_steps=[60, 100]", "fit.threads=1"]
    overrides += [f"sampling.num_samples={SAMPLES}", "sampling.steps=5", "tracking.kind=none"]
    config = load_study(DIGITS, overrides)
    store = open_store(tmp_path_factory.mktemp("previews"))
    prepare.run(config, store)
    train.run(config, store, VARIANT)
    return config, store


def test_pictures_are_drawn_early_and_at_each_evaluated_step(trained: tuple[StudyConfig, Store]) -> None:
    config, store = trained
    run = config.run(VARIANT)
    assert sorted(moments(config)) == STEPS
    assert store.list(layout.previews(config, run)) == [layout.preview(config, run, step) for step in STEPS]
    lines = map(json.loads, store.read(layout.journal(config, run)).splitlines())
    assert [line["step"] for line in lines if "previews" in json.dumps(line)] == STEPS


def test_a_picture_shows_raw_and_ema_weights_from_the_same_noise(trained: tuple[StudyConfig, Store]) -> None:
    config, store = trained
    run = config.run(VARIANT)

    def halves(step: int) -> list[np.ndarray]:
        with Image.open(io.BytesIO(store.read(layout.preview(config, run, step)))) as image:
            assert image.width == grid.MARGIN + 8 * (grid.SMALLEST_TILE + grid.MARGIN)
            pixels = np.asarray(image, dtype=float)
        tile, row = grid.SMALLEST_TILE, grid.SMALLEST_TILE + grid.CAPTION + grid.MARGIN
        assert len(pixels) == grid.MARGIN + 4 * row
        # Without the captions, which name the weights.
        rows = [pixels[top : top + tile] for top in range(grid.MARGIN, len(pixels), row)]
        place = grid.MARGIN + (SAMPLES - 8) * (tile + grid.MARGIN)
        assert rows[1][:, :place].std() > 0
        assert rows[1][:, place:].std() == 0, "more samples than the study draws"
        return [np.concatenate(rows[:2]), np.concatenate(rows[2:])]

    # After one step both are the initial weights but for a step of Adam; later the average lags behind.
    first, last = (np.abs(raw - ema).mean() for raw, ema in (halves(1), halves(100)))
    assert first < last
    assert not np.array_equal(halves(1)[1], halves(100)[1])


def test_the_training_is_the_same_as_without_pictures(trained: tuple[StudyConfig, Store]) -> None:
    config, store = trained
    run = config.run(VARIANT)
    shards = ShardSet.open(store, config, show_progress=False)
    stream = TrainingStream(shards, config.train, rank=0, world_size=1, start_step=0, stop_step=100, prefetch=0)
    with session() as ranks:
        trainer = Trainer(run.spec, config.dataset.inputs, config.train, config.fit_for(run.spec), ranks)
        for batch in stream:
            trainer.step(batch)
    for name, tensors in trainer.files().items():
        saved = load(store.read(f"{layout.checkpoint(config, run, 100)}/{name}"))
        assert all(torch.equal(saved[key], tensor.cpu()) for key, tensor in tensors.items()), name
