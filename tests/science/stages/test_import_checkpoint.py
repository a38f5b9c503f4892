"""Import of a checkpoint of another program: what later stages do with it, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load
from sample_fixtures import STEP, VARIANT, small_study
from torch import Tensor

from dit.cli.commands import run
from dit.errors import ConfigError, InputError, MismatchError, MissingError
from dit.model.transformer import DiT
from dit.results.stages import TRAIN, Work, checkpoint
from dit.results.state import is_complete, require
from dit.stages import import_checkpoint, prepare, sample, train
from dit.storage import Store, open_store
from dit.storage.base import sha256_file
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.variants import InputSpec, resolve

CONFIG = small_study("sampling.num_samples=40")


def weights(seed: int = 0, inputs: InputSpec = CONFIG.dataset.inputs) -> dict[str, Tensor]:
    model = DiT(resolve(VARIANT), inputs)
    random = torch.Generator().manual_seed(seed)
    return {name: 0.05 * torch.randn(value.shape, generator=random) for name, value in model.state_dict().items()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "root")


def saved(path: Path, tree: object) -> str:
    torch.save(tree, path)
    return str(path)


@pytest.fixture
def published(tmp_path: Path) -> str:
    """A state dict alone, in half precision."""
    return saved(tmp_path / "weights.pt", {name: value.half() for name, value in weights().items()})


@pytest.mark.slow
def test_a_published_file_is_sampled_evaluated_and_reported(
    published: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, root = tmp_path / "study.yaml", str(tmp_path / "root")
    study.write_text(small_study("variants=[mini-S/2]", "sampling.num_samples=40", "study=public").to_yaml())
    assert run(["import", published, "--variant", VARIANT, "--step", str(STEP), str(study), "--root", root]) == 0
    for command in ("prepare", "train", "sample", "evaluate", "report"):
        assert run([command, str(study), "--root", root]) == 0, capsys.readouterr().err
    assert (
        run(["sample", str(study), "--variant", VARIANT, "--step", str(STEP), "--labels", "2,3", "--root", root]) == 0
    )
    assert "train mini-S/2: complete, nothing to do" in capsys.readouterr().out
    page = (Path(root) / "studies" / "public" / "report" / "report.html").read_text()
    assert f"from {published} (SHA-256 {sha256_file(published)[:12]})" in page
    assert run(["doctor", str(study), "--latents", "16", "--root", root]) == 3, "random weights do not predict noise"


def test_a_training_checkpoint_keeps_its_parts_its_step_and_its_origin(store: Store, tmp_path: Path) -> None:
    raw, ema = weights(1), weights(2)
    file = saved(tmp_path / "0000004.pt", {"model": raw, "ema": {f"module.{k}": v for k, v in ema.items()}})
    meta = import_checkpoint.run(CONFIG, store, file, VARIANT)
    assert meta.origin is not None
    assert (meta.step, meta.origin.sha256, meta.origin.notes) == (
        4, sha256_file(file), ("removed from the names: module.",),
    )  # fmt: skip
    folder = layout.checkpoint(CONFIG, CONFIG.run(VARIANT), 4)
    for name, given in ((layout.RAW_WEIGHTS, raw), (layout.EMA_WEIGHTS, ema)):
        written = load(store.read(f"{folder}/{name}"))
        assert all(torch.equal(written[key], given[key]) for key in given)
    work = Work(CONFIG, store)
    assert require(work, checkpoint(work, CONFIG.run(VARIANT), 4)).to_json() == meta.to_json()
    assert import_checkpoint.run(CONFIG, store, file, VARIANT).to_json() == meta.to_json()
    other = saved(tmp_path / "other.pt", weights(3))
    with pytest.raises(MismatchError, match="step 4 has another checkpoint"):
        import_checkpoint.run(CONFIG, store, other, VARIANT, 4)


def broken(name: str, value: float) -> dict[str, Tensor]:
    given = weights()
    given[name].view(-1)[0] = value
    return given


@pytest.mark.parametrize(
    ("tree", "step", "error", "message"),
    [
        (weights(), None, ConfigError, "give --step"),
        (broken("x_embedder.proj.bias", math.nan), 4, MismatchError, "x_embedder.proj.bias has 1 of 32 values"),
        ({"model": broken("pos_embed", -math.inf), "ema": weights()}, 4, MismatchError, "pos_embed has 1 of"),
        (weights(inputs=InputSpec(1, 8, 7)), 4, MismatchError, "1x8x8 in 7 classes, the study's dataset has"),
        ({"words": 1}, 4, InputError, "give a DiT checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tree: object, step: int | None, error: type[Exception], message: str, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        import_checkpoint.run(CONFIG, store, saved(tmp_path / "a.pt", tree), VARIANT, step)
    assert store.list() == []


def longer() -> StudyConfig:
    return small_study("train.steps=8", "evaluation.at_steps=[4, 8]")


def test_a_training_does_not_go_on_from_it(published: str, store: Store) -> None:
    config = longer()
    import_checkpoint.run(config, store, published, VARIANT, 4)
    prepare.run(config, store)
    assert not is_complete(TRAIN, Work(config, store), config.run(VARIANT))
    with pytest.raises(MismatchError, match="at step 4 is imported"):
        train.run(config, store, VARIANT)
    import_checkpoint.run(config, store, published, VARIANT, 8)
    assert is_complete(TRAIN, Work(config, store), config.run(VARIANT))


def test_weights_that_it_does_not_have_are_named(published: str, store: Store) -> None:
    config = small_study("sampling.weights=raw")
    import_checkpoint.run(config, store, published, VARIANT, STEP)
    with pytest.raises(MissingError, match=r"imported without model\.safetensors, it has ema\.safetensors"):
        sample.draw_labels(config, store, VARIANT, STEP, [1])


def test_chosen_classes_are_drawn_into_a_picture_beside_the_set(published: str, store: Store) -> None:
    import_checkpoint.run(CONFIG, store, published, VARIANT, STEP)
    keys = [sample.draw_labels(CONFIG, store, VARIANT, STEP, labels) for labels in ([7], [7, 2], list(range(10)) * 4)]
    widths = [np.asarray(Image.open(Path(store.url.removeprefix("file://")) / key)).shape[1] for key in keys]
    assert widths[0] < widths[1] < widths[2]
    assert keys[1].endswith("/labels-7-2.png")
    with pytest.raises(ConfigError, match="10 is not a class; the dataset has classes 0 to 9"):
        sample.draw_labels(CONFIG, store, VARIANT, STEP, [1, 10])


@pytest.mark.parametrize("arguments", [["--labels", "x"], ["--labels", "1,"], ["--labels", "1"]])
def test_labels_need_numbers_and_one_checkpoint(arguments: list[str], tmp_path: Path) -> None:
    assert run(["sample", "configs/digits.yaml", "--root", str(tmp_path), *arguments]) == 2
