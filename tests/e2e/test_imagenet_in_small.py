"""The shipped ImageNet study on a few generated pictures: all stages with full-size models, for one step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_fixtures import image_folder, save_autoencoder
from sample_fixtures import save_inception

from dit.cli.commands import run

STUDY = Path(__file__).parents[2] / "configs" / "imagenet256.yaml"
FULL_SIZE = (128, 256, 512, 512)
VARIANT = "DiT-S/2"
IMAGES = 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files that a user provides: pictures in class folders, an autoencoder of Stable Diffusion's size, InceptionV3."""
    folder = tmp_path_factory.mktemp("files")
    save_autoencoder(folder / "vae", channels=FULL_SIZE)
    sha256 = save_inception(folder / "inception.pth")
    return {
        "dataset.source.path": str(image_folder(folder / "train", classes=2, per_class=1, width=500, height=375)),
        "dataset.classes": "2",
        "dataset.codec.weights": str(folder / "vae"),
        "variants": f"[{VARIANT}]",
        "fit_by_variant": "{}",
        "train.steps": "1",
        "train.global_batch": "2",
        "sampling.num_samples": str(IMAGES),
        "sampling.steps": "2",
        "evaluation.at_steps": "[1]",
        "evaluation.extractor_weights": str(folder / "inception.pth"),
        "evaluation.extractor_sha256": sha256,
        "evaluation.reference": "{kind: dataset}",
        "evaluation.resamples": "40",
        "tracking.kind": "none",
        # The autoencoder is not trained.
        "health.codec": "off",
    }


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_shipped_study_runs_from_pictures_to_metrics(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for key, value in files.items() for word in ("--set", f"{key}={value}")]
    for command in ("prepare", "train", "sample", "evaluate", "report"):
        code = run([command, str(STUDY), "--root", str(tmp_path), *settings])
        assert code == 0, f"dit {command}: {capsys.readouterr().err}"
    (dataset,) = tmp_path.glob("datasets/*/manifest.json")
    manifest = json.loads(dataset.read_text())
    assert (manifest["count"], manifest["latent_size"], manifest["latent_channels"]) == (2, 32, 4)
    results = tmp_path / "studies" / "imagenet256"
    trained = json.loads((results / "dit-s-2" / "train.json").read_text())
    assert (trained["steps"], trained["parameters"]) == (1, 32_963_360 - 998 * 384)  # 2 classes instead of 1000
    (metrics,) = results.glob("dit-s-2/metrics/*.json")
    assert np.isfinite(json.loads(metrics.read_text())["metrics"]["fid"]["value"])
    verdict = json.loads((results / "report" / "verdict.json").read_text())
    assert {claim["verdict"] for claim in verdict["claims"]} == {"undetermined"}
