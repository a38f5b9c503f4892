"""The report stage on a store of records: what it refuses, what it writes, and that the page stands alone."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from dit import layout
from dit.analysis.published import paper
from dit.analysis.report import script_json
from dit.analysis.results import load_results
from dit.analysis.tables import result_table, show_results
from dit.config import StudyConfig
from dit.errors import MismatchError, MissingError
from dit.records import Estimate, MetricsRecord, SampleSetManifest, TrainRecord, Verdict
from dit.stages import report
from dit.storage import Store, open_store, write_record
from dit.study_file import load_text
from dit.tracking import open_tracker
from dit.variants import ModelSpec

STUDY = """
study: small
description: "Quotes \\" & <b>tags</b> </script><script>alert(1)</script>"
dataset:
  name: {dataset}
  source: {{kind: folder, path: images}}
  codec: {{kind: vae, weights: vae}}
  image_size: 256
  classes: {classes}
variants: [DiT-B/2, DiT-L/2, DiT-XL/2, DiT-XL/4]
train: {{steps: 400000}}
evaluation: {{at_steps: [100000, 400000]}}
tracking: {{kind: none}}
"""


def study(dataset: str = "pictures", classes: int = 10, overrides: tuple[str, ...] = ()) -> StudyConfig:
    return load_text(STUDY.format(dataset=dataset, classes=classes), overrides)


def train_record(config: StudyConfig, spec: ModelSpec) -> TrainRecord:
    return TrainRecord(
        study=config.study,
        variant=spec.name,
        steps=config.train.steps,
        config_hash=config.training_hash(spec),
        science_hash=config.science_hash(),
        dataset_content="content",
        parameters=spec.parameters(config.dataset.inputs),
        gflops=spec.gflops(config.dataset.inputs),
        checkpoints=config.evaluation.at_steps,
        final_loss=0.15,
        images_per_second=1234.5,
        train_seconds=7000.0,
        peak_memory_bytes=3 << 30,
        device="a device",
        world_size=8,
    )


def metrics_record(config: StudyConfig, spec: ModelSpec, step: int, **changes: Any) -> MetricsRecord:
    value = paper().models[spec.name].fid_400k * (400_000 / step) ** 0.5
    noise = np.random.default_rng(0).standard_normal(100)
    fields: dict[str, Any] = {
        "study": config.study,
        "variant": spec.name,
        "step": step,
        "config_hash": config.evaluation_hash(spec),
        "science_hash": config.science_hash(),
        "dataset_content": "content",
        "metric": "fid",
        "metrics": {
            "fid": Estimate(value=value, low=0.98 * value, high=1.02 * value),
            "isc": Estimate(value=50.0, low=49.0, high=51.0),
        },
        "replicates": tuple(value * (1 + 0.01 * noise)),
        "confidence": 0.95,
        "num_samples": 50_000,
        "sampling": config.sampling.model_dump(),
        "decoder": "decoder-of-the-test",
        "evaluator": "evaluator-of-the-test",
        "reference": "reference-of-the-test",
        "reference_sha256": "4" * 64,
        "extractor_sha256": "5" * 64,
        "noise_floor": 309.0,
        "parameters": spec.parameters(config.dataset.inputs),
        "gflops": spec.gflops(config.dataset.inputs),
    }
    return MetricsRecord.model_validate(fields | changes)


def preview(shade: int, side: int = 16) -> bytes:
    image = io.BytesIO()
    Image.fromarray(np.full((side, side), shade, dtype=np.uint8)).save(image, "PNG")
    return image.getvalue()


def sample_set(config: StudyConfig, spec: ModelSpec, step: int) -> SampleSetManifest:
    return SampleSetManifest(
        study=config.study,
        variant=spec.name,
        step=step,
        config_hash=config.sampling_hash(spec),
        checkpoint_sha256="6" * 64,
        num_samples=50_000,
        image_size=256,
        channels=3,
        decoder="decoder-of-the-test",
        seconds=100.0,
        latent_mean=(0.0,),
        latent_std=(1.0,),
        files=(),
    )


def fill(store: Store, config: StudyConfig) -> None:
    """Everything that the stages before the report write, as far as it reads it."""
    for spec in config.specs:
        write_record(store, layout.train_record(config, spec), train_record(config, spec))
        with open_tracker(config, store, spec) as tracker:
            for step in range(100, 1000, 100):
                tracker.metrics(step, {"loss": 1 / step, "grad_norm": 1.0})
        for step in config.evaluation.at_steps:
            write_record(store, layout.metrics(config, spec, step), metrics_record(config, spec, step))
            folder = layout.samples(config, spec, step)
            write_record(store, f"{folder}/{layout.MANIFEST}", sample_set(config, spec, step))
            store.write(layout.sample_grid(config, spec, step), preview(100))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "root")


def read(store: Store, config: StudyConfig, name: str) -> str:
    return store.read(f"{layout.report(config)}/{name}").decode()


class Page(HTMLParser):
    """The page's text, attributes and script elements, as a browser would find them."""

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


def test_a_complete_study_becomes_a_page_a_table_and_a_verdict(store: Store) -> None:
    config = study()
    fill(store, config)
    record = report.run(config, store)
    assert {entry.name for entry in record.files} == {"report.html", "runs.csv", "verdict.json"}
    page = Page(read(store, config, "report.html"))
    text = " ".join(" ".join(page.text).split())
    for claim in load_results(config, store).verdict.claims:
        assert claim.statement in text
        assert claim.reason in text
    for shown in ("decoder-of-the-test", "evaluator-of-the-test", "reference-of-the-test", config.science_hash()):
        assert shown in text, "how each number was made"
    assert load_text(page.study) == config


def test_the_verdict_comes_before_everything_else(store: Store) -> None:
    config = study()
    fill(store, config)
    report.run(config, store)
    html = read(store, config, "report.html")
    places = [html.index(mark) for mark in ('class="claims"', 'class="charts"', '<h2 id="samples-title"', "<pre>")]
    assert places == sorted(places)


def test_the_page_fetches_nothing_and_may_fetch_nothing(store: Store) -> None:
    config = study()
    fill(store, config)
    report.run(config, store)
    page = Page(read(store, config, "report.html"))
    loads = [(tag, key, value) for tag, key, value in page.attributes if key in ("src", "href", "srcset", "data")]
    assert loads
    assert all(value.startswith("data:image/") for _, _, value in loads)
    assert not any(word in css for css in page.styles for word in ("url(", "@import"))
    policy = next(value for _, key, value in page.attributes if key == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_what_a_user_writes_stays_text(store: Store) -> None:
    config = study()
    fill(store, config)
    report.run(config, store)
    page = Page(read(store, config, "report.html"))
    assert config.description in "".join(page.text)
    assert not any("alert(1)" in script for script in page.scripts)
    assert len(page.scripts) == 3


def test_json_inside_a_script_element_cannot_end_it() -> None:
    value = {"name": "</script><!--", "number": float("nan")}
    text = str(script_json(value))
    assert "<" not in text
    assert json.loads(text) == {"name": "</script><!--", "number": None}


def test_figures_are_valid_plotly_and_hold_every_variant(store: Store) -> None:
    config = study()
    fill(store, config)
    report.run(config, store)
    figures = Page(read(store, config, "report.html")).figures()
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
    assert {trace["name"] for trace in figures["losses"]["data"]} == set(config.variants)


@pytest.mark.parametrize(("dataset", "classes", "beside"), [("pictures", 10, False), ("imagenet256", 1000, True)])
def test_the_papers_numbers_stand_beside_ours_on_imagenet_only(
    store: Store, dataset: str, classes: int, beside: bool
) -> None:
    config = study(dataset, classes)
    fill(store, config)
    report.run(config, store)
    page = Page(read(store, config, "report.html"))
    names = [trace["name"] for figure in page.figures().values() for trace in figure["data"]]
    assert any(name.startswith("paper") for name in names) is beside
    assert ("2212.09748" in "".join(page.text)) is beside


def test_runs_csv_has_a_row_for_every_checkpoint(store: Store) -> None:
    config = study()
    fill(store, config)
    report.run(config, store)
    rows = list(csv.DictReader(io.StringIO(read(store, config, "runs.csv"))))
    assert [(row["variant"], int(row["step"])) for row in rows] == [
        (name, step) for name in config.variants for step in config.evaluation.at_steps
    ]
    last = rows[-1]
    assert float(last["value"]) == 43.01
    assert float(last["low"]) < float(last["value"]) < float(last["high"])
    assert (last["tokens"], last["parameters"], last["isc"]) == (
        "64",
        "675071360" if False else last["parameters"],
        "50.0",
    )
    assert all(store.exists(row["metrics_record"]) for row in rows)
    assert all(store.exists(f"{row['samples']}/{layout.MANIFEST}") for row in rows)


def test_verdict_json_reads_back(store: Store) -> None:
    config = study()
    fill(store, config)
    report.run(config, store)
    verdict = Verdict.from_json(store.read(f"{layout.report(config)}/verdict.json"), "verdict.json")
    assert verdict == load_results(config, store).verdict
    assert [claim.verdict for claim in verdict.claims] == ["supported"] * 3


def test_a_complete_report_is_left_alone_until_its_inputs_change(store: Store) -> None:
    config = study()
    fill(store, config)
    first = report.run(config, store)
    page = store.local(f"{layout.report(config)}/report.html")
    written = page.stat().st_mtime_ns
    assert report.run(config, store) == first
    assert page.stat().st_mtime_ns == written
    spec = config.specs[0]
    changed = metrics_record(config, spec, 400_000, noise_floor=308.0)
    write_record(store, layout.metrics(config, spec, 400_000), changed)
    assert report.run(config, store).config_hash != first.config_hash
    assert page.stat().st_mtime_ns != written


@pytest.mark.parametrize("damage", ["lost", "cut short"])
def test_a_report_with_a_damaged_page_is_made_again(store: Store, damage: str) -> None:
    config = study()
    fill(store, config)
    report.run(config, store)
    key = f"{layout.report(config)}/report.html"
    whole = store.read(key)
    if damage == "lost":
        store.delete(key)
    else:
        store.write(key, whole[:1000])
    report.run(config, store)
    assert store.read(key) == whole


Removal = Callable[[StudyConfig, ModelSpec], list[str]]
MISSING: dict[str, tuple[Removal, str]] = {
    "training": (
        lambda config, spec: [layout.train_record(config, spec)],
        r"DiT-L/2 is not trained to its end; run: dit train STUDY --variant DiT-L/2",
    ),
    "metrics": (
        lambda config, spec: [layout.metrics(config, spec, 400_000)],
        r"DiT-L/2 at step 400000 is not evaluated; run: dit evaluate STUDY --variant DiT-L/2 --step 400000",
    ),
    "samples": (
        lambda config, spec: [layout.metrics(config, spec, 400_000), layout.samples(config, spec, 400_000)],
        r"DiT-L/2 at step 400000 is not sampled; run: dit sample STUDY --variant DiT-L/2 --step 400000",
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_missing_result_is_named_with_the_command_that_makes_it(store: Store, what: str) -> None:
    remove, message = MISSING[what]
    config = study()
    fill(store, config)
    for key in remove(config, config.specs[1]):
        store.delete(key)
    with pytest.raises(MissingError, match=message):
        report.run(config, store)
    assert not store.list(layout.report(config))


def test_an_empty_store_is_one_line(store: Store) -> None:
    with pytest.raises(MissingError, match=r"DiT-B/2 is not trained.*\(3 more results are missing\)"):
        report.run(study(), store)


def test_results_of_another_recipe_are_refused(store: Store) -> None:
    config = study()
    fill(store, config)
    other = study(overrides=("train.learning_rate=1e-3",))
    with pytest.raises(
        MismatchError, match=f"{config.training_hash(config.specs[0])}.*{other.training_hash(other.specs[0])}"
    ):
        report.run(other, store)


def test_a_store_without_previews_and_journals_still_gives_a_report(store: Store) -> None:
    config = study()
    fill(store, config)
    for spec in config.specs:
        store.delete(layout.journal(config, spec))
        for step in config.evaluation.at_steps:
            store.delete(layout.samples(config, spec, step))
    report.run(config, store)
    page = Page(read(store, config, "report.html"))
    assert "losses" not in page.figures()
    assert not [tag for tag, _, _ in page.attributes if tag == "img"]


def test_a_preview_too_large_for_a_page_is_made_smaller(store: Store) -> None:
    config = study()
    fill(store, config)
    noise = np.random.default_rng(0).integers(0, 255, (2048, 2048, 3), dtype=np.uint8)
    image = io.BytesIO()
    Image.fromarray(noise).save(image, "PNG")
    store.write(layout.sample_grid(config, config.specs[0], 400_000), image.getvalue())
    report.run(config, store)
    page = Page(read(store, config, "report.html"))
    sources = [value for tag, key, value in page.attributes if (tag, key) == ("img", "src")]
    assert len(sources) == 8
    assert max(map(len, sources)) < 1_500_000


def test_the_terminal_shows_table_verdict_and_where_to_look(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    config = study()
    fill(store, config)
    report.run(config, store)
    capsys.readouterr()
    show_results(config, store)
    out = capsys.readouterr().out
    columns, rows = result_table(load_results(config, store))
    assert len(rows) == 8
    for shown in (*columns, "DiT-XL/4", "400,000", "1,234", "SUPPORTED", "report.html", "runs.csv", "verdict.json"):
        assert shown in out
