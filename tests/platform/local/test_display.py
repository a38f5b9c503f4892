"""What is printed of a running study: lines, bars and failures."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from terminals import Terminal, terminal

from dit.errors import DitError, InputError
from pipelines.local.display import StudyLog, open_log
from pipelines.step.events import Event

__all__ = ["terminal"]


@dataclass
class Shown:
    """Output for lines of the workers."""

    log: StudyLog
    screen: str
    progress: str
    kept: str


def shown(lines: list[tuple[int, str | Event]], capsys: pytest.CaptureFixture[str]) -> Shown:
    kept = io.StringIO()
    with StudyLog(kept, total=12) as log:
        for worker, line in lines:
            log.take(worker, f"    {line.to_line().rstrip() if isinstance(line, Event) else line}")
    captured = capsys.readouterr()
    return Shown(log, captured.out, captured.err, kept.getvalue())


def test_only_the_lines_of_steps_are_printed_and_all_output_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    noise = "[KFP Executor 2026-01-01 00:00:00,000 INFO]: Got executor_input:"
    lines = [noise, Event("begin", "prepare"), "from a library", Event("line", "1797 images [4 shards]"), Event("end")]
    result = shown([(1, line) for line in lines], capsys)
    first, second, third = result.screen.splitlines()
    assert (first, second) == (" 1/12 prepare", "      prepare: 1797 images [4 shards]")
    assert third.startswith("      prepare: done in ")
    for line in (noise, "from a library", "1797 images [4 shards]"):
        assert line in result.kept


def test_control_characters_in_the_output_of_steps_are_shown_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [Event("begin", "prepare"), "cut: \x1b[2Ja.png", Event("line", "left out: \x1b]0;b\x07.png"), Event("end")]
    result = shown([(1, line) for line in lines], capsys)
    assert "prepare: left out: \\x1b]0;b\\x07.png" in result.screen
    assert "cut: \\x1b[2Ja.png" in result.kept
    assert "\x1b" not in result.screen + result.kept


def test_lines_of_two_workers_name_their_steps(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[tuple[int, str | Event]] = [
        (1, Event("begin", "evaluate mini-S/2")),
        (2, Event("begin", "train mini-B/2")),
        (1, Event("open", "noise floor", count=10, unit="images")),
        (2, Event("open", "train mini-B/2", count=20, unit="steps")),
        (1, Event("advance", count=10)),
        (2, Event("advance", count=20, info={"loss": 0.5})),
        (2, Event("line", "a word")),
        (2, Event("close")),
        (1, Event("close")),
        (2, Event("end", "train mini-B/2")),
        (1, Event("end", "evaluate mini-S/2")),
    ]
    result = shown(lines, capsys)
    begun_first, begun_second, line, done_second, done_first = result.screen.splitlines()
    assert (begun_first, begun_second) == (" 1/12 evaluate mini-S/2", " 2/12 train mini-B/2")
    assert line == "      train mini-B/2: a word"
    assert done_second.startswith("      train mini-B/2: done in ")
    assert done_first.startswith("      evaluate mini-S/2: done in ")
    second, first = result.progress.splitlines()
    assert first.startswith("evaluate mini-S/2: noise floor: 10/10 images (100 %)")
    assert second.startswith("train mini-B/2: 20/20 steps (100 %)")
    assert "loss 0.5" in second


def test_on_a_terminal_steps_have_a_bar_each_and_leave_a_line(terminal: Terminal) -> None:
    code = """
        import io, time
        from pipelines.step.events import Event
        from pipelines.local.display import StudyLog
        with StudyLog(io.StringIO(), total=8) as log:
            def tell(worker, event):
                log.take(worker, event.to_line().rstrip())
            for worker, name in ((1, "train mini-XL/2"), (2, "train mini-S/2")):
                tell(worker, Event("begin", name))
            for worker, name in ((1, "train mini-XL/2"), (2, "train mini-S/2")):
                tell(worker, Event("open", name, count=40, unit="step"))
            for _ in range(4):
                tell(1, Event("advance", count=2))
                tell(2, Event("advance", count=5, info={"loss": 0.25}))
                time.sleep(0.01)
            input()
            tell(2, Event("line", "a last word"))
            tell(2, Event("close"))
            tell(2, Event("end", "train mini-S/2"))
    """
    first = r"train mini-XL/2 .* 8/40 +[\d.]+ step/s .* left"
    second = r"train mini-S/2 .* 20/40 +[\d.]+ step/s .* left .*loss 0\.2500"
    drawn = [line.rstrip() for line in terminal.show(code, first, second).splitlines() if line.strip()]
    done = [line for line in drawn if "✓" in line]
    assert len(done) == 1
    assert re.fullmatch(r"✓ 1/8 train mini-S/2 +[\d.]+ (s|ms) +a last word", done[0])
    assert not any(line.startswith("train mini-S/2 ") for line in drawn[drawn.index(done[0]) + 1 :])


def test_the_log_of_an_earlier_run_is_kept(tmp_path: Path) -> None:
    for line in ("first", "second"):
        with open_log(tmp_path / "a.log") as log:
            log.write(f"{line}\n")
    kept = (tmp_path / "a.log").read_text().splitlines()
    assert kept[1::2] == ["first", "second"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d ", line) for line in kept[::2])


def test_a_failure_has_the_steps_own_message(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[tuple[int, str | Event]] = [
        (1, Event("begin", "train")),
        (2, Event("begin", "sample")),
        (2, Event("error", "sample: no checkpoint", 2)),
        (1, Event("error", "train: stopped by a signal", 143)),
    ]
    log = shown(lines, capsys).log
    assert (type(log.failure(2, "a.log")), str(log.failure(2, "a.log"))) == (InputError, "sample: no checkpoint")
    assert (type(log.failure(1, "a.log")), str(log.failure(1, "a.log"))) == (DitError, "train: stopped by a signal")


def test_a_failure_without_a_message_has_the_last_output_and_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [Event("begin", "train mini-S/2"), "Traceback", "RuntimeError: out of memory", ""]
    log = shown([(1, line) for line in lines], capsys).log
    message = str(log.failure(1, "/runs/logs/a.log"))
    assert "train mini-S/2" in message
    assert "RuntimeError: out of memory" in message
    assert "/runs/logs/a.log" in message


def test_a_killed_step_or_worker_has_the_signal_and_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[tuple[int, str | Event]] = [
        (1, Event("begin", "train mini-S/2")),
        (2, Event("begin", "sample mini-S/2")),
        (1, Event("killed", code=9)),
    ]
    log = shown(lines, capsys).log
    killed = "was killed by signal 9 (SIGKILL); memory?; full output: a.log"
    assert str(log.failure(1, "a.log", 1)) == f"train mini-S/2 {killed}"
    assert str(log.failure(2, "a.log", -9)) == f"sample mini-S/2 {killed}"
