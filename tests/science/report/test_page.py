"""The report's page: complete, escaped, and self-contained."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from study_records import fill, metrics_record, preview, read, sample_set, study

from dit.claims.results import load_results
from dit.health.log import HealthLog
from dit.stages import report
from dit.storage import Store, open_store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.paper import paper
from dit.study.records import HealthEvent
from dit.study.study_file import load_text
from dit.tracking import open_tracker

PASSED = HealthEvent(check="ema", step=20, value=0.5, bound="below 1", action="ok", message="")
STOPPED = HealthEvent(
    check="ema",
    step=20,
    value=9.0,
    bound="below 1",
    action="stop",
    message="x",
    cause="no gradient",
    advice="look at it",
)


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
    """Text, attributes, tables and figures of a page, as a browser parses them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.styles: list[str] = []
        self.text: list[str] = []
        self.study = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        self.tags.append(tag)

    def handle_endtag(self, _tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.styles.append(data)
        else:
            self.text.append(data)
            self.study += data if self._inside == "pre" else ""


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
    links = {value for tag, key, value in loads if (tag, key) == ("a", "href")}
    assert links == {paper().url}, "a citation, which a reader may follow"
    assert len(loads) > len(links)
    assert all(value.startswith("data:image/") for tag, _, value in loads if tag != "a")
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert len(page.styles) == 1
    assert not any(word in css for css in page.styles for word in ("url(", "@import"))
    policy = next(value for _, key, value in page.attributes if key == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_text_from_the_study_file_is_escaped(reported: Store) -> None:
    page = page_of(reported, study())
    assert study().description in "".join(page.text)
    assert "script" not in page.tags


def charts_of(html: str) -> dict[str, str]:
    """Chart -> its <figure>."""
    figures = re.findall(r'<figure class="chart">.*?</figure>', html, re.DOTALL)
    return {re.search(r"<h3>(.*?)</h3>", figure)[1]: figure for figure in figures}  # type: ignore[index]


def test_charts_are_drawn_without_javascript_and_have_their_values_in_words_and_tables(reported: Store) -> None:
    charts = charts_of(read(reported, study(), "report.html"))
    assert list(charts) == ["Against compute", "Against parameters", "Over training", "Training loss"]
    for figure in charts.values():
        drawing = ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.DOTALL)[0])  # type: ignore[index]
        texts = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
        assert {"B/2", "L/2", "XL/2", "XL/4"} <= set(texts)
        described = drawing.find("{http://www.w3.org/2000/svg}desc")
        assert described is not None
        assert all(name in str(described.text) for name in study().variants)
        assert all(f'<th scope="row">{name}</th>' in figure for name in study().variants)
    assert "19.47 [19.08, 19.86]" in charts["Against compute"]


def test_charts_follow_the_page_between_light_and_dark(reported: Store) -> None:
    html = read(reported, study(), "report.html")
    for figure in charts_of(html).values():
        colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", figure))
        assert {colour for colour in colours if colour != "none"} <= {*re.findall(r"var\(--[\w-]+\)", figure)}
        assert not re.findall(r"<text(?![^>]*fill: var)", figure), "black, which a dark page hides"
        assert all(f"--{name}:" in html for name in re.findall(r"var\(--([\w-]+)\)", figure))


def test_the_page_opens_with_the_health_of_the_study_and_has_every_checks_last_reading(store: Store) -> None:
    config = study()
    for run in config.runs:
        log = HealthLog(store, layout.health(config, run))
        log.add(STOPPED if run == config.runs[1] else PASSED)
        log.flush()
        with open_tracker(config, store, run) as tracker:
            for step in (10, 100, 1000):
                tracker.metrics(step, {"health/ratio_a": 20 / step, "health/ratio_b": 40 / step})
    report.run(config, store)
    html = read(store, config, "report.html")
    line = "DiT-L/2 broke at step 20: no gradient; look at it"
    assert html.index(line) < html.index(paper().citation)
    section = html[html.index('id="health-title"') :]
    assert re.search(r'<th scope="row">ema</th><td>✓ 0.5000</td><td>✗ 9.000</td>', section)
    charts = charts_of(section)
    assert list(charts) == ["R_a over training", "R_b over training"]
    assert all("XL/4" in figure for figure in charts.values())


def test_ids_are_unique(reported: Store) -> None:
    ids = [value for _, key, value in page_of(reported, study()).attributes if key == "id"]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("dataset", "classes", "beside"), [("pictures", 10, False), ("imagenet256", 1000, True)])
def test_the_papers_numbers_are_shown_on_imagenet_only(
    tmp_path: Path, dataset: str, classes: int, beside: bool
) -> None:
    config, store = study(dataset, classes), open_store(tmp_path)
    fill(store, config)
    report.run(config, store)
    page = page_of(store, config)
    text = "".join(page.text)
    assert ("the paper" in charts_of(read(store, config, "report.html"))["Against compute"]) is beside
    assert ("Tables 2 to 4" in text) is beside
    assert ("with another seed or framework" in text) is beside


def test_a_report_without_previews_and_journals_leaves_them_out(store: Store) -> None:
    config = study()
    for run in config.runs:
        store.delete(layout.journal(config, run))
        for step in config.evaluation.at_steps:
            store.delete(layout.samples(config, run, step))
    report.run(config, store)
    page = page_of(store, config)
    assert "Training loss" not in charts_of(read(store, config, "report.html"))
    assert "img" not in page.tags


def test_what_a_training_drew_is_a_strip_per_variant(store: Store) -> None:
    config = study()
    first, steps = config.runs[0], [4_000, 40_000, 400_000]
    # The last is of a longer training of the same recipe.
    for step in (*steps, 800_000):
        store.write(layout.preview(config, first, step), preview(step // 4_000))
    report.run(config, store)
    page = page_of(store, config)
    shown = [value for tag, key, value in page.attributes if (tag, key) == ("img", "alt") and "raw weights" in value]
    assert shown == [f"Samples of {first.name} at step {step:,}, raw weights above, EMA below" for step in steps]
    assert " ".join(page.text).count(first.name) > 0


def test_a_large_preview_is_reduced(store: Store) -> None:
    config = study()
    noise = np.random.default_rng(0).integers(0, 255, (2048, 2048, 3), dtype=np.uint8)
    image = io.BytesIO()
    Image.fromarray(noise).save(image, "PNG")
    store.write(layout.sample_grid(config, config.runs[0], 400_000), image.getvalue())
    report.run(config, store)
    page = page_of(store, config)
    sources = [value for tag, key, value in page.attributes if (tag, key) == ("img", "src")]
    assert len(sources) == 8
    assert max(map(len, sources)) < 1_500_000


def test_real_images_are_beside_the_samples_and_every_grid_can_be_enlarged(store: Store) -> None:
    config = study()
    store.write(layout.real_grid(config), preview(200))
    report.run(config, store)
    images = re.findall(r'<input type="checkbox"[^>]*><img [^>]*alt="([^"]*)"', read(store, config, "report.html"))
    assert images[0].startswith("Images of the dataset")
    assert len(images) == 1 + len(config.variants) * len(config.evaluation.at_steps)
    assert any("DiT-XL/2 at step 400,000" in text for text in images)


def test_other_sampling_protocols_are_side_by_side_and_do_not_replace_the_report(store: Store) -> None:
    config = study()
    report.run(config, store)
    guided = study(overrides=("sampling.cfg_scale=1.5", "evaluation.at_steps=[400000]"))
    for run in guided.runs:
        record = metrics_record(guided, run, 400_000, science_hash=guided.science_hash())
        write_record(store, layout.metrics(guided, run, 400_000), record)
        grid = store.write(layout.sample_grid(guided, run, 400_000), preview(50))
        write_record(store, f"{layout.samples(guided, run, 400_000)}/manifest.json", sample_set(guided, run, 1, [grid]))
    other_recipe = study(overrides=("sampling.cfg_scale=3", "train.seed=7"))
    foreign = metrics_record(other_recipe, other_recipe.runs[0], 400_000)
    write_record(store, layout.metrics(other_recipe, config.runs[0], 400_000), foreign)
    report.run(config, store)
    html = read(store, config, "report.html")
    table = html[html.index("Sampling protocols side by side") :]
    rows = re.findall(r'<th scope="row">(DiT-[^<]*)</th><td class="number">400,000</td><td>([0-9.]+)</td>', table)
    assert sorted(rows) == sorted((name, scale) for name in config.variants for scale in ("1.0", "1.5"))
    assert html.count("cfg_scale 1.5</figcaption>") == len(config.variants)
    assert "3.0" not in {scale for _, scale in rows}


def test_terms_are_explained_and_the_report_names_date_code_seeds_and_cost(reported: Store) -> None:
    page = page_of(reported, study())
    text = " ".join(" ".join(page.text).split())
    for word in ("Fréchet distance", "DiT-XL/2", "Patch", "Tokens", "R²", paper().citation):
        assert word in text
    assert re.search(r"written \d{4}-\d\d-\d\d by dit-scaling", text)
    assert "training seed 0, sampling seed 0" in text
    # Four trainings of 7,000 s, with 8 processes each; 8 sample sets of 100 s.
    assert re.search(r"Training 7\.8 h 62 h [0-9.]+e20", text)
    assert re.search(r"Sampling – 13 min [0-9.]+e", text)


def test_a_study_of_noise_has_one_line_instead_of_three_cards(store: Store) -> None:
    config = study()
    for run in config.runs:
        for step in config.evaluation.at_steps:
            noise = metrics_record(config, run, step, noise_floor=1.0)
            write_record(store, layout.metrics(config, run, step), noise)
    report.run(config, store)
    html = read(store, config, "report.html")
    assert html.count("No model is better than noise") == 1
    assert 'class="claim ' not in html
    assert html.index("No model is better than noise") < html.index('<dl class="terms">')
