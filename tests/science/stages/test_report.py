"""The report stage on a store of records: its files, its refusals, and when it runs again."""

from __future__ import annotations

import base64
import csv
import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from study_records import fill, metrics_record, preview, read, study, train_record

from dit.claims.results import load_results
from dit.errors import MismatchError, MissingError, UnhealthyError
from dit.health.log import add_event
from dit.report.tables import result_table, show_results
from dit.stages import report
from dit.storage import Store, open_store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import Estimate, HealthEvent, Verdict
from dit.study.runs import Run


@pytest.fixture
def config() -> StudyConfig:
    return study()


@pytest.fixture
def store(tmp_path: Path, config: StudyConfig) -> Store:
    """The records of a study, without a report."""
    store = open_store(tmp_path / "root")
    fill(store, config)
    return store


def test_runs_csv_has_a_row_for_every_checkpoint(config: StudyConfig, store: Store) -> None:
    report.run(config, store)
    rows = list(csv.DictReader(io.StringIO(read(store, config, "runs.csv"))))
    assert [(row["variant"], int(row["step"])) for row in rows] == [
        (name, step) for name in config.variants for step in config.evaluation.at_steps
    ]
    last = rows[-1]
    assert float(last["value"]) == 43.01
    assert float(last["low"]) < float(last["value"]) < float(last["high"])
    # DiT-XL/4 as published, less the 990 of 1000 classes that this dataset does not have.
    assert (last["tokens"], last["parameters"], last["isc"]) == ("64", str(675_074_432 - 990 * 1152), "50.0")
    assert all(store.exists(row["metrics_record"]) for row in rows)
    assert all(store.exists(f"{row['samples']}/{layout.MANIFEST}") for row in rows)


def test_runs_csv_has_the_training_time_up_to_each_checkpoint(config: StudyConfig, store: Store) -> None:
    gone = layout.checkpoint(config, config.runs[1], 100_000)
    store.delete(gone)
    report.run(config, store)
    rows = list(csv.DictReader(io.StringIO(read(store, config, "runs.csv"))))
    cost = {(row["variant"], row["step"]): (row["train_seconds"], row["images_per_second"]) for row in rows}
    assert cost["DiT-B/2", "100000"] == ("1750.0", "1010.0")
    assert cost["DiT-B/2", "400000"] == ("7000.0", "1040.0")
    assert cost["DiT-L/2", "100000"] == ("", "")


def test_verdict_json_can_be_read_back(config: StudyConfig, store: Store) -> None:
    report.run(config, store)
    verdict = Verdict.from_json(store.read(f"{layout.report(config)}/verdict.json"), "verdict.json")
    assert verdict == load_results(config, store).verdict
    assert [claim.verdict for claim in verdict.claims] == ["supported"] * 3


def test_a_complete_report_is_left_alone_until_its_inputs_change(config: StudyConfig, store: Store) -> None:
    first = report.run(config, store)
    page = store.local(f"{layout.report(config)}/report.html")
    written = page.stat().st_mtime_ns
    assert report.run(config, store) == first
    assert page.stat().st_mtime_ns == written
    run = config.runs[0]
    changed = metrics_record(config, run, 400_000, noise_floor=308.0)
    write_record(store, layout.metrics(config, run, 400_000), changed)
    assert report.run(config, store).config_hash != first.config_hash
    assert page.stat().st_mtime_ns != written


Removal = Callable[[StudyConfig, Run], list[str]]
MISSING: dict[str, tuple[Removal, str]] = {
    "training": (
        lambda config, run: [layout.train_record(config, run)],
        r"train\.json: DiT-L/2 is not trained to its end; run `dit train STUDY --variant DiT-L/2`",
    ),
    "metrics": (
        lambda config, run: [layout.metrics(config, run, 400_000)],
        r"DiT-L/2 at step 400000 is not evaluated; run `dit evaluate STUDY --variant DiT-L/2 --step 400000`",
    ),
    "samples": (
        lambda config, run: [layout.metrics(config, run, 400_000), layout.samples(config, run, 400_000)],
        r"DiT-L/2 at step 400000 is not sampled; run `dit sample STUDY --variant DiT-L/2 --step 400000`",
    ),
    "checkpoint": (
        lambda config, run: [
            layout.metrics(config, run, 400_000),
            layout.samples(config, run, 400_000),
            layout.checkpoint(config, run, 400_000),
        ],
        r"DiT-L/2 has no complete checkpoint at step 400000 \(complete are: 100000\); run `dit train STUDY --variant",
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_missing_result_is_named_with_the_command_that_makes_it(config: StudyConfig, store: Store, what: str) -> None:
    remove, message = MISSING[what]
    for key in remove(config, config.runs[1]):
        store.delete(key)
    with pytest.raises(MissingError, match=message):
        report.run(config, store)
    assert not store.list(layout.report(config))


def stop(config: StudyConfig, store: Store, run: Run) -> None:
    """As a check stops a training."""
    event = HealthEvent(
        check="ema", step=5, value=9.0, bound="below 1", action="stop", message=f"{run.name}: no EMA", cause="no EMA"
    )
    add_event(store, layout.health(config, run), event)
    for key in (layout.train_record(config, run), *store.list(f"{layout.variant(config, run)}/metrics")):
        store.delete(key)


def test_a_variant_that_a_check_stopped_is_left_out_by_name(
    config: StudyConfig, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    stop(config, store, config.runs[1])
    report.run(config, store)
    html = read(store, config, "report.html")
    assert "DiT-L/2 broke at step 5: no EMA" in html
    assert "3 of 4 variants" in html
    verdict = load_results(config, store).verdict
    assert verdict.notes[0].startswith("Warning: the claims are judged without a variant that a health check stopped")
    assert "DiT-L/2: no EMA" in verdict.notes[0]
    show_results(config, store)
    assert "DiT-L/2 broke at step 5: no EMA" in capsys.readouterr().out
    assert {row["variant"] for row in csv.DictReader(io.StringIO(read(store, config, "runs.csv")))} == {
        *config.variants
    } - {"DiT-L/2"}


def test_each_seed_has_its_rows_and_one_that_a_check_stopped_is_left_out_alone(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    config = study("imagenet256", 1000, ("seeds=2", "variants=[DiT-B/2, DiT-L/2]"))
    fill(store, config)
    stop(config, store, config.run("DiT-L/2", 1))
    report.run(config, store)
    rows = csv.DictReader(io.StringIO(read(store, config, "runs.csv")))
    runs = [("DiT-B/2", "0"), ("DiT-B/2", "1"), ("DiT-L/2", "0")]
    assert list(dict.fromkeys((row["variant"], row["seed"]) for row in rows)) == runs
    html = read(store, config, "report.html")
    for text in ("DiT-L/2 seed 1 broke at step 5: no EMA", "3 of 4 runs", "training seeds 0, 1,", ">Seed</th>"):
        assert text in html
    assert "without a run that a health check stopped" in load_results(config, store).verdict.notes[0]
    records = [record for _, record in load_results(config, store).rows()]
    assert list(dict.fromkeys((record.variant, str(record.train_seed)) for record in records)) == runs
    show_results(config, store)
    assert "DiT-L/2 seed 1 broke at step 5: no EMA" in capsys.readouterr().out
    store.delete(layout.metrics(config, config.run("DiT-B/2", 1), config.evaluation.at_steps[0]))
    with pytest.raises(MissingError, match="run `dit evaluate STUDY --variant DiT-B/2 --seed 1 --step "):
        report.run(config, store)


def test_without_a_complete_variant_the_failure_is_named_instead_of_what_is_missing(
    config: StudyConfig, store: Store
) -> None:
    for run in config.runs:
        stop(config, store, run)
    with pytest.raises(UnhealthyError, match=r"no variant is complete: DiT-B/2 broke at step 5: no EMA; also broken"):
        report.run(config, store)


def test_an_empty_store_is_refused_in_one_line(config: StudyConfig, tmp_path: Path) -> None:
    with pytest.raises(
        MissingError, match=r"the dataset is not prepared; run `dit prepare STUDY` \(11 more results are missing\)"
    ) as caught:
        report.run(config, open_store(tmp_path))
    assert str(caught.value).startswith(f"study {config.study} is not complete below {tmp_path}: {tmp_path}/datasets/")


PNG_BEGIN, PNG_END = preview(0)[:8], preview(0)[-8:]
IHDR = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
HUGE = PNG_BEGIN + struct.pack(">I", 13) + IHDR + struct.pack(">I", zlib.crc32(IHDR)) + bytes(500_000) + PNG_END


@pytest.mark.parametrize(
    "damaged",
    [b"", b"junk", preview(0)[:40], preview(0)[:-20] + preview(1)[-20:-12], PNG_BEGIN + PNG_END, HUGE],
    ids=len,
)
@pytest.mark.parametrize("size", [0, 500_000])
def test_a_damaged_preview_is_shown_as_damaged(config: StudyConfig, store: Store, damaged: bytes, size: int) -> None:
    store.write(layout.sample_grid(config, config.runs[0], 400_000), damaged + bytes(size))
    report.run(config, store)
    picture = re.search(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", read(store, config, "report.html"))
    assert picture is not None
    assert "is damaged" in base64.b64decode(picture[1]).decode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_distance_that_has_no_place_on_the_charts_is_in_the_tables(
    config: StudyConfig, store: Store, value: float
) -> None:
    run, step = config.runs[0], config.evaluation.at_steps[-1]
    primary = Estimate(value=value, low=value, high=value)
    record = metrics_record(config, run, step, metrics={config.evaluation.metric: primary}, noise_floor=value)
    write_record(store, layout.metrics(config, run, step), record)
    report.run(config, store)
    show_results(config, store)
    assert f">{value:g}" in read(store, config, "report.html")


@pytest.mark.parametrize("what", ["training", "metrics"])
def test_results_with_other_shards_are_refused(config: StudyConfig, store: Store, what: str) -> None:
    """Also if the dataset itself was removed."""
    store.delete(layout.dataset(config))
    if what == "training":
        run = config.runs[2]
        other = train_record(config, run).model_copy(update={"dataset_content": "other"})
        write_record(store, layout.train_record(config, run), other)
        message = r"DiT-B/2 was trained on shards [0-9a-f]+, DiT-XL/2 was trained on other"
    else:
        for run in config.runs:
            for step in config.evaluation.at_steps:
                record = metrics_record(config, run, step, dataset_content="other")
                write_record(store, layout.metrics(config, run, step), record)
        message = r"DiT-B/2 was trained on shards [0-9a-f]+, DiT-B/2 was at step 100000 measured beside other"
    with pytest.raises(MismatchError, match=message):
        report.run(config, store)


def test_the_terminal_shows_table_verdict_and_paths(
    config: StudyConfig, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    report.run(config, store)
    capsys.readouterr()
    show_results(config, store)
    out = capsys.readouterr().out
    columns, rows = result_table(load_results(config, store))
    assert len(rows) == 8
    for shown in (*columns, "DiT-XL/4", "400,000", "1,234", "SUPPORTED", "report.html", "runs.csv", "verdict.json"):
        assert shown in out
