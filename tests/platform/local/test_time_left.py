"""The time left for a whole study: from its plan, corrected by the pace of its own steps."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from study_records import fill
from terminals import Terminal, terminal

from dit.results.stages import Work
from dit.storage import open_store
from dit.study import layout
from dit.study.study_file import load
from pipelines.local.display import StudyLog
from pipelines.local.time_left import START_SECONDS, StudyClock, expected_seconds
from pipelines.step.events import Event

__all__ = ["terminal"]
EXPECTED = {"prepare": 10.0, "train a": 100.0, "sample a": 20.0, "train b": 50.0, "sample b": 10.0, "report": 5.0}


@pytest.mark.parametrize("slower", [0.5, 1.0, 3.0])
def test_the_time_left_follows_the_pace_of_the_steps_that_ran(slower: float) -> None:
    clock, now = StudyClock(EXPECTED, workers=1), 1000.0
    assert clock.left(now) is None
    rest = slower * sum(EXPECTED.values())
    for step, expected in EXPECTED.items():
        clock.begin(step, now)
        now, rest = now + slower * expected, rest - slower * expected
        clock.end(step, now)
        if step != "prepare":
            assert clock.left(now) == pytest.approx(rest, rel=0.3, abs=1e-6)


def test_one_slow_start_does_not_decide_the_pace() -> None:
    clock = StudyClock(EXPECTED, workers=1)
    clock.begin("prepare", 0.0)
    clock.end("prepare", 100.0)
    left = clock.left(100.0)
    assert left is not None
    assert left < 5 * (sum(EXPECTED.values()) - 10)


def test_a_training_counts_by_its_bar_and_a_resumed_one_only_for_what_this_run_did() -> None:
    clock = StudyClock({"train a": 10_000.0, "sample a": 1000.0}, workers=1)
    clock.begin("train a", 0.0)
    clock.advance("train a", 0.6)
    assert clock.left(1.0) is None, "the first 60 % are an earlier run's"
    clock.advance("train a", 0.8)
    # 2,000 of 10,000 s of expected work took 4,000 s: twice as long.
    assert clock.left(4000.0) == pytest.approx(2 * (2000 + 1000), rel=0.02)


def test_two_workers_share_the_rest_but_not_one_step() -> None:
    clock = StudyClock({"prepare": 1.0, "train a": 100.0, "train b": 20.0}, workers=2)
    clock.begin("prepare", 0.0)
    clock.end("prepare", 1.0)
    assert clock.left(1.0) == pytest.approx(100.0)


def test_what_is_complete_is_expected_to_take_a_start_only(tmp_path: Path) -> None:
    config = load(Path(__file__).parents[3] / "configs/digits.yaml", ["tracking.kind=none"])
    store = open_store(tmp_path)
    fill(store, config)
    first, second = config.runs[:2]
    store.delete(layout.variant(config, second))
    expected = expected_seconds(Work(config, store), [first, second], 1, on_gpu=False)
    assert sum(seconds for step, seconds in expected.items() if first.name in step) == START_SECONDS
    assert all(seconds > 0 for step, seconds in expected.items() if second.name in step)
    assert list(expected)[:4] == [
        "prepare",
        *(f"{stage} {first.name} step 500" for stage in ("train", "sample", "evaluate")),
    ]
    assert list(expected)[-1] == "report"
    assert len(expected) == 2 + 2 * 3 * 3


def test_a_training_that_goes_on_from_a_checkpoint_counts_from_there() -> None:
    clock = StudyClock({"train a step 1000": 1000.0}, workers=1, before={"train a step 1000": 0.5})
    clock.begin("train a step 1000", 0.0)
    clock.advance("train a step 1000", 0.5)
    clock.advance("train a step 1000", 0.75)
    assert clock.left(500.0) == pytest.approx(500.0, rel=0.02)


def test_every_finished_step_leaves_the_time_left_for_the_study(capsys: pytest.CaptureFixture[str]) -> None:
    clock = StudyClock({"prepare": 10.0, "report": 600.0}, workers=1)
    with StudyLog(io.StringIO(), total=2, clock=clock) as log:
        for event in (Event("begin", "prepare"), Event("end"), Event("begin", "report"), Event("end")):
            log.take(1, event.to_line().rstrip())
    _, prepared, _, reported = capsys.readouterr().out.splitlines()
    assert "left for the study" in prepared
    assert "left" not in reported


def test_a_terminal_shows_the_time_left_beside_the_bars(terminal: Terminal) -> None:
    code = """
        import io
        from pipelines.step.events import Event
        from pipelines.local.display import StudyLog
        from pipelines.local.time_left import StudyClock
        clock = StudyClock({"train a": 1.0, "report": 60.0}, workers=1)
        with StudyLog(io.StringIO(), total=2, clock=clock) as log:
            def tell(event):
                log.take(1, event.to_line().rstrip())
            tell(Event("begin", "train a"))
            tell(Event("open", "train a", count=10, unit="step"))
            tell(Event("advance", count=1))
            input()
    """
    terminal.show(code, "0 of 2 steps  left about")
