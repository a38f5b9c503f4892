"""The local runner's parts, with real processes: who ends when, what is shown, what counts as complete."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from dataset_fixtures import pretend_autoencoder
from hypothesis import given
from hypothesis import strategies as st
from study_records import fill, study
from terminals import Terminal, terminal

from dit.console import progress
from dit.errors import DitError, InputError, MismatchError
from dit.results.stages import Work
from dit.results.state import unfinished
from dit.storage import open_store
from dit.study.config import FitConfig
from dit.study.study_file import load
from pipelines.local.display import StudyLog
from pipelines.local.parallelism import Share, share
from pipelines.step import submitted
from pipelines.step.events import Event, from_line, spoken
from pipelines.step.parent_watch import VARIABLE, ChildLifeline, end_with_parent
from pipelines.step.step import run_step

__all__ = ["terminal"]

STEP = """
import signal, sys, time
from pipelines.step import parent_watch
parent_watch.GRACE_SECONDS = 0.5
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
assert parent_watch.end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
STARTER = f"""
import subprocess, sys
from pipelines.step.parent_watch import ChildLifeline
with ChildLifeline():
    subprocess.run([sys.executable, "-c", {STEP!r}])
"""


def start_step(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STEP, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("arguments", "number"), [([], signal.SIGTERM), (["deaf"], signal.SIGKILL)])
def test_a_pulled_lifeline_ends_the_step(arguments: list[str], number: int) -> None:
    with ChildLifeline() as lifeline:
        process = start_step(*arguments)
        lifeline.pull()
        process.communicate(timeout=30)
    assert process.returncode == -number


def test_ctrl_c_on_the_terminal_leaves_the_step_to_its_starter() -> None:
    with ChildLifeline():
        process = start_step()
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM


def test_a_step_does_not_outlive_a_starter_that_is_killed() -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    assert starter.stdout.readline() == "ready\n"
    starter.kill()
    # The pipe closes when the last process that could write to it, the step, is gone.
    assert starter.communicate(timeout=30) == ("", None)


def test_a_lifeline_leaves_standard_input_and_environment_as_they_were() -> None:
    before = os.fstat(0)
    with ChildLifeline():
        assert os.environ[VARIABLE] == "1"
    assert os.path.samestat(before, os.fstat(0))
    assert VARIABLE not in os.environ


def test_a_process_without_a_lifeline_is_left_alone() -> None:
    assert end_with_parent() is False


@given(st.text(), st.integers(0, 255), st.dictionaries(st.text(), st.floats(allow_nan=False) | st.text()))
def test_an_event_survives_the_line_that_carries_it(text: str, number: int, info: dict[str, float | str]) -> None:
    event = Event("error", text, code=number, count=number, info=info)
    line = event.to_line()
    assert line.count("\n") == 1
    assert from_line(f"    {line.rstrip()}") == event


def test_what_a_step_prints_becomes_events() -> None:
    output = io.StringIO()
    with redirect_stdout(output), spoken("train mini-S/2") as speaker:
        sys.stdout.write("one\n\ntwo, ")
        sys.stdout.write("still two")
        speaker.tell(Event("error", "why", 2))
    assert [from_line(line) for line in output.getvalue().rstrip("\n").split("\n")] == [
        Event("begin", "train mini-S/2"),
        Event("line", "one"),
        Event("error", "why", 2),
        Event("line", "two, still two"),
        Event("end", "train mini-S/2"),
    ]


def test_what_a_step_counts_becomes_events_that_add_up() -> None:
    output = io.StringIO()
    with redirect_stdout(output), spoken("train mini-S/2"), progress("train", 50, "steps", completed=10) as bar:
        for _ in range(39):
            bar.advance(loss=1.0)
        bar.advance(loss=0.5)
    lines = output.getvalue().rstrip("\n").split("\n")
    begin, opened, *advanced, closed, end = [from_line(line) for line in lines]
    assert opened == Event("open", "train", count=50, completed=10, unit="steps")
    assert sum(event.count for event in advanced if event) == 40
    assert advanced[-1] is not None
    assert advanced[-1].info == {"loss": 0.5}
    assert (begin, closed, end) == (Event("begin", "train mini-S/2"), Event("close"), Event("end", "train mini-S/2"))


def test_a_step_works_on_when_its_starter_is_gone() -> None:
    """What it would say must not keep it from writing its checkpoint."""
    code = """
        import sys
        from dit.console import progress, say
        from pipelines.step.events import spoken
        with spoken("train"), progress("train", 2, "steps") as bar:
            sys.stdin.readline()
            for _ in range(2):
                say("a word")
                bar.advance()
            sys.__stderr__.write("worked on")
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.stderr.read() == "worked on"
    assert process.wait() == 0


@dataclass
class Shown:
    """What became of lines from workers."""

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


def test_only_what_a_step_says_is_shown_and_all_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    noise = "[KFP Executor 2026-01-01 00:00:00,000 INFO]: Got executor_input:"
    lines = [noise, Event("begin", "prepare"), "from a library", Event("line", "1797 images [4 shards]"), Event("end")]
    result = shown([(1, line) for line in lines], capsys)
    first, second, third = result.screen.splitlines()
    assert (first, second) == (" 1/12 prepare", "      prepare: 1797 images [4 shards]")
    assert third.startswith("      prepare: done in ")
    for line in (noise, "from a library", "1797 images [4 shards]"):
        assert line in result.kept


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
    begun_first, begun_second, said, done_second, done_first = result.screen.splitlines()
    assert (begun_first, begun_second) == (" 1/12 evaluate mini-S/2", " 2/12 train mini-B/2")
    assert said == "      train mini-B/2: a word"
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
            time.sleep(0.4)
            for worker, name in ((1, "train mini-XL/2"), (2, "train mini-S/2")):
                tell(worker, Event("open", name, count=40, unit="step"))
            for _ in range(8):
                tell(1, Event("advance", count=1))
                tell(2, Event("advance", count=5, info={"loss": 0.25}))
                time.sleep(0.1)
            tell(2, Event("line", "a last word"))
            tell(2, Event("close"))
            tell(2, Event("end", "train mini-S/2"))
            time.sleep(0.4)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=terminal.slave,
        stderr=terminal.slave,
        env={**os.environ, "TERM": "xterm"},
        check=True,
    )
    drawn = [line.rstrip() for line in terminal.text().splitlines() if line.strip()]
    assert any(re.match(r"train mini-XL/2 .* 8/40 [\d.]+ step/s .* left", line) for line in drawn)
    assert any(re.match(r"train mini-S/2 .*/40 [\d.]+ step/s .* left .*loss 0\.2500", line) for line in drawn)
    done = [line for line in drawn if "✓" in line]
    assert len(done) == 1
    assert re.fullmatch(r"✓ 1/8 train mini-S/2 +[\d.]+ (s|ms) +a last word", done[0])
    assert not any(line.startswith("train mini-S/2 ") for line in drawn[drawn.index(done[0]) + 1 :])


def test_a_failure_is_the_steps_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[tuple[int, str | Event]] = [
        (1, Event("begin", "train")),
        (2, Event("begin", "sample")),
        (2, Event("error", "sample: no checkpoint", 2)),
        (1, Event("error", "train: stopped by a signal", 143)),
    ]
    log = shown(lines, capsys).log
    assert (type(log.failure(2, "a.log")), str(log.failure(2, "a.log"))) == (InputError, "sample: no checkpoint")
    assert (type(log.failure(1, "a.log")), str(log.failure(1, "a.log"))) == (DitError, "train: stopped by a signal")


def test_a_step_that_dies_without_a_word_names_its_last_output_and_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [Event("begin", "train mini-S/2"), "Traceback", "RuntimeError: out of memory", ""]
    log = shown([(1, line) for line in lines], capsys).log
    message = str(log.failure(1, "/runs/logs/a.log"))
    assert "train mini-S/2" in message
    assert "RuntimeError: out of memory" in message
    assert "/runs/logs/a.log" in message


def machine(monkeypatch: pytest.MonkeyPatch, cores: int, *, gpu: bool = False) -> None:
    monkeypatch.setattr("pipelines.local.parallelism._cores", lambda: cores)
    monkeypatch.setattr("pipelines.local.parallelism._has_gpu", lambda _: gpu)


@pytest.mark.parametrize(
    ("cores", "variants", "expected"),
    [(1, 5, (1, None)), (2, 5, (2, 1)), (8, 3, (3, 2)), (64, 5, (5, 12)), (8, 1, (1, None)), (8, 0, (1, None))],
)
def test_variants_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, variants: int, expected: tuple[int, int | None]
) -> None:
    machine(monkeypatch, cores)
    assert share(FitConfig(), variants, {}) == Share(*expected)


def test_a_gpu_is_not_shared_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8, gpu=True)
    assert share(FitConfig(), 5, {}) == Share(1, None)
    assert share(FitConfig(parallel_variants=2), 5, {}) == Share(2, 4)


def test_the_users_parallel_variants_and_threads_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8)
    assert share(FitConfig(parallel_variants=1), 5, {}) == Share(1, None)
    assert share(FitConfig(parallel_variants=9), 5, {}) == Share(5, 1)
    assert share(FitConfig(threads=4), 5, {}) == Share(2, None)
    assert share(FitConfig(), 5, {"OMP_NUM_THREADS": "3"}) == Share(2, None)
    assert share(FitConfig(), 5, {"OMP_NUM_THREADS": "4,2"}) == Share(2, None)
    assert share(FitConfig(), 5, {"OMP_NUM_THREADS": "many"}) == Share(5, 1)


def test_cores_are_those_of_this_process() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from dit.study.config import FitConfig\nfrom pipelines.local import parallelism\n"
    code += "print(parallelism.share(FitConfig(), 5, {'CUDA_VISIBLE_DEVICES': ''}).workers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_samples_of_another_decoder_are_refused_before_any_step(tmp_path: Path) -> None:
    config, store = study(), open_store(tmp_path / "root")
    fill(store, config)
    assert unfinished(Work(config, store)) == []
    weights = pretend_autoencoder(tmp_path / "vae", b"other")
    other = study(overrides=(f"dataset.codec.weights={weights}",))
    with pytest.raises(MismatchError, match="decoded with decoder-of-the-test"):
        unfinished(Work(other, store))


def test_a_step_in_a_container_says_why_it_fails_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = submitted.write(load(Path(__file__).parents[3] / "configs/digits.yaml"), open_store(tmp_path))
    with pytest.raises(SystemExit) as caught:
        run_step("train", address, "mini-s-2")
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("dit: train mini-S/2: ")
    assert errors.count("\n") == 1
