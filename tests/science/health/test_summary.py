"""The health of a study in one line and in tables, and what of it reaches the tracking server."""

from __future__ import annotations

from pathlib import Path

import pytest

from dit.errors import UnhealthyError
from dit.health.gate import Reading, event
from dit.health.gates import GATES
from dit.health.log import HealthLog, read_events
from dit.health.recipe import RecipeView
from dit.health.summary import CHECKS, headline, matrix, readings, stopped_by
from dit.health.watch import Watch
from dit.storage import Store, open_store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import HealthEvent
from dit.study.study_file import load
from dit.tracking import open_tracker
from dit.tracking.journal import parse

DIGITS = Path(__file__).parents[3] / "configs" / "digits.yaml"
OK = Reading(0.5, "below 1")
SICK = Reading(9.0, "below 1", "stop", "the EMA does not follow the weights", "a wrong decay", "look at its decay")
POOR = Reading(7.0, "below 1", "warn", "the samples are noise", advice="sample later")


@pytest.fixture
def config() -> StudyConfig:
    return load(DIGITS, ["variants=[mini-S/2, mini-B/2]"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def found(check: str, reading: Reading, step: int = 20, where: str = "mini-S/2") -> HealthEvent:
    return event(next(gate for gate in GATES if gate.name == check), reading, step, where, None)


def healthy(config: StudyConfig) -> list[tuple[str, HealthEvent]]:
    """Every check of the dataset and of all variants."""
    variants = [(name, found(check, OK, where=name)) for name in config.variants for check in CHECKS[3:]]
    return [("digits", found(check, OK, 0, "digits")) for check in CHECKS[:3]] + variants


def test_a_healthy_study_has_one_line_with_the_number_of_checks_and_variants(config: StudyConfig) -> None:
    assert headline(healthy(config)) == f"healthy: {len(CHECKS)} of {len(CHECKS)} checks in 2 variants"
    assert headline([]) == ""


@pytest.mark.parametrize(
    ("reading", "line"),
    [
        (SICK, "mini-B/2 broke at step 20: the EMA does not follow the weights; look at its decay"),
        (
            POOR,
            f"healthy: {len(CHECKS) - 1} of {len(CHECKS)} checks in 2 variants; warning: mini-B/2 at step 20: the"
            " samples are noise; sample later",
        ),
    ],
)
def test_a_failure_is_named_with_its_step_its_cause_and_what_to_do(
    config: StudyConfig, reading: Reading, line: str
) -> None:
    made = [
        (name, found("ema", reading, where=name) if (name, event.check) == ("mini-B/2", "ema") else event)
        for name, event in healthy(config)
    ]
    assert headline(made) == line


def test_a_failure_that_stopped_the_work_comes_before_warnings_and_others_are_named() -> None:
    made = [("mini-S/2", found("samples", POOR)), ("mini-S/2", found("ema", SICK)), ("mini-B/2", found("start", SICK))]
    assert headline(made).startswith("mini-S/2 broke at step 20: ")
    assert headline(made).endswith("; also broken: mini-B/2 (start)")


def test_with_several_seeds_the_headline_counts_runs() -> None:
    made = [(name, found(check, OK, where=name)) for name in ("mini-S/2", "mini-S/2 seed 1") for check in CHECKS]
    assert headline(made) == f"healthy: {len(CHECKS)} of {len(CHECKS)} checks in 2 runs"
    broken = [*made, ("mini-S/2 seed 1", found("ema", SICK, where="mini-S/2 seed 1"))]
    assert headline(broken).startswith("mini-S/2 seed 1 broke at step 20: ")


def test_a_failed_dataset_is_not_a_variant() -> None:
    assert headline([("digits", found("data", SICK, 0, "digits"))]).startswith("digits broke in its preparation: ")


def test_events_of_earlier_versions_have_only_a_message() -> None:
    old = HealthEvent(check="ema", step=5, value=9.0, bound="below 1", action="stop", message="mini-S/2: all is lost")
    assert headline([("mini-S/2", old)]) == "mini-S/2 broke at step 5: all is lost"


def test_the_table_has_a_row_for_each_check_and_a_column_for_each_variant(config: StudyConfig) -> None:
    columns, rows = matrix([*healthy(config)[:-1], ("mini-B/2", found("ema", SICK))])
    assert columns == ["Check", "digits", "mini-S/2", "mini-B/2"]
    assert [row[0] for row in rows] == list(CHECKS)
    cells = {str(row[0]): row[1:] for row in rows}
    assert cells["ema"] == [None, "✓ 0.5000", "✗ 9.000"]
    assert cells[CHECKS[-1]] == [None, "✓ 0.5000", None]


def test_a_variant_is_stopped_until_the_check_passes_or_is_off(config: StudyConfig, store: Store) -> None:
    run = config.runs[0]
    log = HealthLog(store, layout.health(config, run))
    log.add(found("ema", SICK))
    stopped = stopped_by(config, store, run)
    assert stopped is not None
    assert stopped.check == "ema"
    off = config.model_copy(update={"health": {"ema": "off"}})
    assert stopped_by(off, store, run) is None
    assert readings(off, store) == []
    log.add(found("ema", OK))
    log.flush()
    assert stopped_by(config, store, run) is None


def test_a_reading_is_logged_as_a_metric_and_the_headline_as_a_tag(config: StudyConfig, store: Store) -> None:
    config = config.model_copy(
        update={
            "train": config.train.model_copy(update={"learning_rate": 0.1}),
            "tracking": load(DIGITS, ["tracking.kind=none"]).tracking,
        }
    )
    run = config.runs[0]
    with open_tracker(config, store, run) as tracker, pytest.raises(UnhealthyError):
        Watch(config, run, store, None, tracker).look("plan", 0, lambda: RecipeView(config, run.spec))
    (stopped,) = read_events(store, layout.health(config, run))
    entries = list(parse(store.read(layout.journal(config, run))))
    assert [entry.values for entry in entries if entry.kind == "metrics"] == [{"health/recipe": stopped.value}]
    (tags,) = [entry.values for entry in entries if entry.kind == "tags"]
    assert tags["health"].startswith("mini-S/2 broke before its first step: train.learning_rate=0.1 is too high")


def test_readings_of_one_moment_are_one_call_and_an_unchanged_headline_is_not_repeated(
    config: StudyConfig, store: Store
) -> None:
    config = config.model_copy(update={"tracking": load(DIGITS, ["tracking.kind=none"]).tracking})
    run = config.runs[0]
    with open_tracker(config, store, run) as tracker:
        watch = Watch(config, run, store, None, tracker)
        for step in (10, 20):
            watch.measured(step, {"R_a": 0.5})
            watch.look("plan", step, lambda: RecipeView(config, run.spec), more=True)
            watch.look("losses", step, lambda: None)
    entries = list(parse(store.read(layout.journal(config, run))))
    metrics = [entry for entry in entries if entry.kind == "metrics"]
    assert [(entry.step, set(entry.values)) for entry in metrics] == [
        (step, {"R_a", "health/recipe"}) for step in (10, 20)
    ]
    # One for each check that is new; none for the second reading of either.
    assert len([entry for entry in entries if entry.kind == "tags"]) == 2
