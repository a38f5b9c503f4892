"""The shipped ImageNet studies, whole, on a few generated pictures: every loader, at full model size, for two steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_fixtures import image_folder, save_autoencoder
from sample_fixtures import save_inception

REPOSITORY = Path(__file__).parents[2]
FULL_SIZE = (128, 256, 512, 512)
VARIANT = "DiT-B/2"
IMAGES = 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a user brings: pictures in class folders, an autoencoder of Stable Diffusion's size, InceptionV3."""
    folder = tmp_path_factory.mktemp("files")
    save_autoencoder(folder / "vae", channels=FULL_SIZE)
    sha256 = save_inception(folder / "inception.pth")
    return {
        "dataset.source.path": str(image_folder(folder / "train", classes=2, per_class=1, width=500, height=375)),
        "dataset.classes": "2",
        "dataset.codec.weights": str(folder / "vae"),
        "variants": f"[{VARIANT}]",
        "fit_by_variant": "{}",
        "train.steps": "2",
        "train.global_batch": "2",
        "sampling.num_samples": str(IMAGES),
        "sampling.steps": "2",
        "evaluation.at_steps": "[2]",
        "evaluation.extractor_weights": str(folder / "inception.pth"),
        "evaluation.extractor_sha256": sha256,
        "evaluation.reference": "{kind: dataset}",
        "evaluation.resamples": "3",
        "tracking.kind": "none",
    }


@pytest.mark.timeout(900)
@pytest.mark.parametrize("study", ["imagenet256", "imagenet256-52k"])
def test_shipped_study_runs_from_pictures_to_metrics(study: str, files: dict[str, str], tmp_path: Path) -> None:
    commands = ["prepare", "train", "sample", "evaluate", "report"] if study == "imagenet256" else ["prepare"]
    settings = [word for key, value in files.items() for word in ("--set", f"{key}={value}")]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "dit", command, f"configs/{study}.yaml", "--root", str(tmp_path), *settings],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"dit {command}: {done.stderr}"
    manifest = json.loads(next(tmp_path.glob("datasets/*/manifest.json")).read_text())
    assert (manifest["count"], manifest["latent_size"], manifest["latent_channels"]) == (2, 32, 4)
    if "evaluate" not in commands:
        return
    record = json.loads(next(tmp_path.glob("studies/*/dit-b-2/metrics/*.json")).read_text())
    assert np.isfinite(record["metrics"]["fid"]["value"])
    assert record["parameters"] == 130_512_416 - 998 * 768  # 2 classes instead of 1000
    verdict = json.loads(next(tmp_path.glob("studies/*/report/verdict.json")).read_text())
    assert {claim["verdict"] for claim in verdict["claims"]} == {"undetermined"}
