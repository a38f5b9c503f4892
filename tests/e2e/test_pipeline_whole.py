"""The compiled pipeline with its parameters, run by kfp's local runner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dit.results.stages import Work
from dit.results.state import study_is_complete
from dit.storage import open_store, read_record
from dit.study.records import DatasetManifest, TrainRecord
from dit.study.study_file import load

REPOSITORY = Path(__file__).parents[2]
OVERRIDES = (
    "variants=[mini-S/2]",
    "dataset.samples_per_shard=600",
    "train.steps=400",
    "evaluation.at_steps=[10, 400]",
    "evaluation.resamples=40",
    "sampling.steps=5",
    "cluster.steps.retries=0",
)
# The parameters of the run: it is evaluated at its last step, and at the study's earlier steps.
CHANGED = ("train.steps=20", "evaluation.at_steps=[10, 20]", "sampling.num_samples=60", "train.seed=3")
PROGRAM = """
import sys, warnings
from kfp import local
from dit.study.study_file import load
from pipelines.definition.pipeline import build

warnings.simplefilter("ignore")
study, root, folder, *overrides = sys.argv[1:]
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=folder)
build(load(study, overrides), root)(steps=20, samples=60, seed=3, overrides=["fit.log_every=5"])
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_pipeline_runs_the_study_with_the_parameters_of_its_submission(tmp_path: Path) -> None:
    study, root = "configs/digits.yaml", str(tmp_path / "runs")
    given = (*OVERRIDES, f"cluster.env={{DIT_CACHE: {tmp_path / 'cache'}}}")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, study, root, str(tmp_path / "kfp"), *given],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    config, store = load(REPOSITORY / study, [*OVERRIDES, *CHANGED]), open_store(root)
    assert study_is_complete(Work(config, store))
    assert store.exists("studies/digits/report/report.html")
    manifest = read_record(store, f"datasets/digits-{config.dataset_hash()}/manifest.json", DatasetManifest)
    assert manifest is not None
    assert manifest.count == 1797
    record = read_record(store, "studies/digits/mini-s-2/train.json", TrainRecord)
    assert record is not None
    assert record.steps == 20
    pages = {path.name: path.read_text() for path in (tmp_path / "kfp").rglob("*") if path.name == "verdict"}
    grids = [path.read_text() for path in (tmp_path / "kfp").rglob("grids")]
    assert sum(page.count("data:image/png;base64,") for page in grids) == 2
    assert pages["verdict"].startswith("## Verdict at step 20\n")
