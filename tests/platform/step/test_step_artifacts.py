"""What the pipelines' UI is given to show: of steps that find their work done, since that is all an artifact needs."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from study_records import fill, preview, study

from dit.storage import Store, open_store
from dit.study.records import CheckpointMeta
from pipelines.definition import components
from pipelines.step import submitted
from pipelines.step.share import Share
from pipelines.step.step import run_step, run_variant

VARIANT = "DiT-XL/2"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Of a study that is complete."""
    store = open_store(tmp_path / "runs")
    fill(store, study())
    return store


@pytest.fixture
def address(store: Store) -> str:
    """Of that study."""
    return submitted.write(study(), store)


@pytest.fixture
def outputs(tmp_path: Path) -> tuple[Any, Any]:
    """Two artifacts as kfp gives them to a step."""
    logged: dict[str, float] = {}
    first, second = (SimpleNamespace(path=str(tmp_path / name), metadata={}) for name in ("first", "second"))
    first.log_metric, first.logged = logged.__setitem__, logged
    return first, second


def shown(artifact: Any) -> str:
    return Path(artifact.path).read_text()


def test_previews_stand_in_one_page_each_below_its_step(address: str, outputs: tuple[Any, Any]) -> None:
    sets, grids = outputs
    run_variant(["sample"], address, VARIANT, Share(), "image").samples(sets, grids)
    page = shown(grids)
    assert re.findall(r"<h2>(.*?)</h2>", page) == [f"{VARIANT}, step 100,000", f"{VARIANT}, step 400,000"]
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(image) for image in images] == [preview(100)] * 2
    assert "http" not in page
    assert sets.metadata["store"].endswith("/studies/small/dit-xl-2/samples")


def test_one_step_of_a_variant_has_the_artifacts_of_its_stages(address: str, tmp_path: Path) -> None:
    names = ("model", "grids", "metrics", "summary")
    made = {name: SimpleNamespace(path=str(tmp_path / name), metadata={}) for name in names}
    made["metrics"].log_metric = lambda *_: None
    components.whole_variant(address, "image", VARIANT, 1, 1, **made)
    assert CheckpointMeta.from_json(Path(made["model"].path).read_bytes(), "artifact").variant == VARIANT
    assert f"{VARIANT}, step 400,000" in shown(made["grids"])
    assert f"## {VARIANT}" in shown(made["summary"])
    folders = ["checkpoints/step-00400000", "samples", "metrics", "metrics"]
    assert [one.metadata["store"].partition("/dit-xl-2/")[2] for one in made.values()] == folders


def test_metrics_are_numbers_and_a_table_with_their_intervals(address: str, outputs: tuple[Any, Any]) -> None:
    metrics, summary = outputs
    run_variant(["evaluate"], address, VARIANT, Share()).metrics(metrics, summary)
    assert metrics.logged == {"fid_step_100000": pytest.approx(38.94), "fid_step_400000": pytest.approx(19.47)}
    lines = shown(summary).splitlines()
    assert lines[0] == f"## {VARIANT}"
    assert lines[2:] == [
        "| Step | FID | Inception Score |",
        "| --- | --- | --- |",
        "| 100,000 | 38.94 [38.16, 39.72] | 50.00 [49.00, 51.00] |",
        "| 400,000 | 19.47 [19.08, 19.86] | 50.00 [49.00, 51.00] |",
        "",
        "50,000 images a checkpoint; intervals of 95%.",
    ]


def test_the_model_is_the_trainings_record_with_its_checkpoints_address(
    store: Store, address: str, outputs: tuple[Any, Any]
) -> None:
    model, _ = outputs
    run_variant(["train"], address, VARIANT, Share(), "image").model(model)
    assert CheckpointMeta.from_json(Path(model.path).read_bytes(), "artifact").variant == VARIANT
    assert model.metadata == {
        "store": f"{store.url}/studies/small/dit-xl-2/checkpoints/step-00400000",
        "variant": VARIANT,
        "steps": 400_000,
        "loss": 0.15,
    }


def test_the_report_comes_whole_and_its_verdict_as_text(store: Store, address: str, outputs: tuple[Any, Any]) -> None:
    page, verdict = outputs
    run_step("report", address).report(page, verdict)
    assert Path(page.path).read_bytes() == store.read("studies/small/report/report.html")
    text, claims = shown(verdict), json.loads(store.read("studies/small/report/verdict.json"))["claims"]
    assert text.startswith("## Verdict at step 400,000\n")
    found = re.findall(r"^(\d)\. \*\*([a-z ]+)\*\*", text, re.MULTILINE)
    assert found == [(str(claim["number"]), f"{claim['verdict']} for this seed") for claim in claims]
    rows = [line for line in text.splitlines() if line.startswith("| DiT-")]
    assert len(rows) == 8
    assert page.metadata["store"] == verdict.metadata["store"]
