"""The saved view of a study, as MLflow's pages unpack it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

from dit.storage import open_store, write_record
from dit.study import layout, study_file
from dit.study.variants import VARIANTS
from dit.tracking import mlflow_view
from dit.tracking.mlflow_ui import view_on_server
from dit.tracking.state import TrackingRun

METRIC = "cfg-1.0_n-1000_steps-25_seed-0/fid"


def state(value: str) -> dict[str, Any]:
    """The page state in a view."""
    envelope = json.loads(value)
    mark, _, packed = envelope["state"].partition(";")
    assert mark == "deflate"
    unpacked: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return unpacked


def test_the_view_draws_the_distance_against_gflops_and_parameters_and_over_steps() -> None:
    shown = state(mlflow_view.view_value("first", METRIC, 400, 1))
    charts = shown["compareRunCharts"]
    sections = {section["uuid"] for section in shown["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in charts} == sections
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    axes = [(chart["xaxis"]["key"], chart["yaxis"]["dataAccessKey"]) for chart in charts if chart["type"] == "SCATTER"]
    assert axes == [("gflops", METRIC), ("parameters_m", METRIC)]
    assert [chart["metricKey"] for chart in charts if chart["type"] == "LINE"] == [METRIC, "loss"]
    [grid] = [chart for chart in charts if chart["type"] == "IMAGE"]
    assert (grid["imageKeys"], grid["step"]) == (["samples"], 400)


def test_the_view_is_reproducible_and_shows_its_study_alone() -> None:
    value = mlflow_view.view_value("first", METRIC, 400, 1)
    assert mlflow_view.view_value("first", METRIC, 400, 1) == value
    assert "'first'" in state(value)["searchFilter"]
    assert mlflow_view.view_tag("first") != mlflow_view.view_tag("second")
    assert "viewStateShareKey=first&" in mlflow_view.view_page("7", "first")


def test_a_view_changed_by_a_person_is_recognised() -> None:
    value = mlflow_view.view_value("first", METRIC, 400, 1)
    assert mlflow_view.is_ours(value)
    assert not mlflow_view.is_ours(json.dumps({**json.loads(value), "updatedAt": 2}))
    assert not mlflow_view.is_ours("deflate;eJw")


def test_a_variant_that_this_version_does_not_know_has_no_colour() -> None:
    assert mlflow_view.colour("DiT-Q/3") == ""


def test_every_variant_of_a_family_has_its_own_colour() -> None:
    names = [name for name, spec in VARIANTS.items() if spec.family == "DiT"]
    colours = {mlflow_view.colour(name) for name in names}
    assert len(colours) == len(names)
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)


def test_the_view_has_an_address_on_a_server_only(tmp_path: Path) -> None:
    config, store = study_file.load(Path(__file__).parents[3] / "configs" / "digits.yaml"), open_store(tmp_path)
    assert view_on_server(config, store) is None
    for uri, shown in (
        ("sqlite:///mlflow.db", None),
        ("https://mlflow.example.com/", "https://mlflow.example.com/#/exp"),
    ):
        record = TrackingRun(journal="1", run_id="2", experiment_id="7", uri=uri)
        write_record(store, layout.tracking_run(config, None), record)
        assert (view_on_server(config, store) or "").startswith(shown or "")
        assert bool(view_on_server(config, store)) == bool(shown)
