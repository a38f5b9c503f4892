"""The report's page: complete, escaped, and self-contained."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image
from study_records import fill, read, study

from dit.claims.results import load_results
from dit.report.page import script_json
from dit.stages import report
from dit.storage import Store, open_store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.study_file import load_text


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The records of a study, without a report."""
    store = open_store(tmp_path / "root")
    fill(store, study())
    return store


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A study with its report, which the tests only read."""
    store = open_store(tmp_path_factory.mktemp("reported"))
    fill(store, study())
    report.run(study(), store)
    return store


class Page(HTMLParser):
    """Text, attributes and script elements of a page, as a browser parses them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.text: list[str] = []
        self.study = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, _tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.styles.append(data)
        else:
            self.text.append(data)
            self.study += data if self._inside == "pre" else ""

    def figures(self) -> dict[str, Any]:
        return dict(json.loads(self.scripts[0]))


def page_of(store: Store, config: StudyConfig) -> Page:
    return Page(read(store, config, "report.html"))


def test_the_page_shows_claims_provenance_and_the_study_file(reported: Store) -> None:
    config = study()
    page = page_of(reported, config)
    text = " ".join(" ".join(page.text).split())
    for claim in load_results(config, reported).verdict.claims:
        assert claim.statement in text
        assert claim.reason in text
    for shown in ("decoder-of-the-test", "evaluator-of-the-test", "reference-of-the-test", config.science_hash()):
        assert shown in text
    assert load_text(page.study) == config


def test_the_verdict_is_above_charts_samples_and_study_file(reported: Store) -> None:
    html = read(reported, study(), "report.html")
    places = [html.index(mark) for mark in ('class="claims"', 'class="charts"', '<h2 id="samples-title"', "<pre>")]
    assert places == sorted(places)


def test_the_page_loads_nothing_and_its_policy_forbids_it(reported: Store) -> None:
    page = page_of(reported, study())
    loads = [(tag, key, value) for tag, key, value in page.attributes if key in ("src", "href", "srcset", "data")]
    assert loads
    assert all(value.startswith("data:image/") for _, _, value in loads)
    assert not any(word in css for css in page.styles for word in ("url(", "@import"))
    policy = next(value for _, key, value in page.attributes if key == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_text_from_the_study_file_is_escaped(reported: Store) -> None:
    page = page_of(reported, study())
    assert study().description in "".join(page.text)
    assert not any("alert(1)" in script for script in page.scripts)
    assert len(page.scripts) == 3


def test_json_in_a_script_element_cannot_end_it() -> None:
    value = {"name": "</script><!--", "number": float("nan")}
    text = str(script_json(value))
    assert "<" not in text
    assert json.loads(text) == {"name": "</script><!--", "number": None}


def test_figures_are_valid_plotly_and_have_every_variant(reported: Store) -> None:
    figures = page_of(reported, study()).figures()
    assert set(figures) == {"gflops", "parameters", "steps", "losses"}
    for figure in figures.values():
        plain = re.sub(r'"@[a-z0-9-]+"', '"#123456"', json.dumps(figure))
        go.Figure(json.loads(plain))
    for name in ("gflops", "parameters"):
        labels = {label for trace in figures[name]["data"] for label in trace.get("text", [])}
        assert labels == {"B/2", "L/2", "XL/2", "XL/4"}
    ours = next(trace for trace in figures["steps"]["data"] if trace["name"] == "DiT-XL/2")
    assert ours["x"] == [100_000, 400_000]
    assert ours["error_y"]["array"] == pytest.approx([0.02 * y for y in ours["y"]])
    assert {trace["name"] for trace in figures["losses"]["data"]} == set(study().variants)


@pytest.mark.parametrize(("dataset", "classes", "beside"), [("pictures", 10, False), ("imagenet256", 1000, True)])
def test_the_papers_numbers_are_shown_on_imagenet_only(
    tmp_path: Path, dataset: str, classes: int, beside: bool
) -> None:
    config, store = study(dataset, classes), open_store(tmp_path)
    fill(store, config)
    report.run(config, store)
    page = page_of(store, config)
    names = [trace["name"] for figure in page.figures().values() for trace in figure["data"]]
    assert any(name.startswith("paper") for name in names) is beside
    assert ("2212.09748" in "".join(page.text)) is beside


def test_a_report_without_previews_and_journals_leaves_them_out(store: Store) -> None:
    config = study()
    for spec in config.specs:
        store.delete(layout.journal(config, spec))
        for step in config.evaluation.at_steps:
            store.delete(layout.samples(config, spec, step))
    report.run(config, store)
    page = page_of(store, config)
    assert "losses" not in page.figures()
    assert not [tag for tag, _, _ in page.attributes if tag == "img"]


def test_a_large_preview_is_reduced(store: Store) -> None:
    config = study()
    noise = np.random.default_rng(0).integers(0, 255, (2048, 2048, 3), dtype=np.uint8)
    image = io.BytesIO()
    Image.fromarray(noise).save(image, "PNG")
    store.write(layout.sample_grid(config, config.specs[0], 400_000), image.getvalue())
    report.run(config, store)
    page = page_of(store, config)
    sources = [value for tag, key, value in page.attributes if (tag, key) == ("img", "src")]
    assert len(sources) == 8
    assert max(map(len, sources)) < 1_500_000
