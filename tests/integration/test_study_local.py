"""The local runner's parts, with real processes: who ends when, what is shown, what counts as complete."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit.errors import DitError, InputError
from pipelines.events import Event, emit_error, from_line, spoken
from pipelines.leash import MARK, Leash, obey
from pipelines.step import run_step
from pipelines.terminal import StepLog

STEP = """
import signal, sys, time
from pipelines import leash
leash.GRACE_SECONDS = 0.5
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
assert leash.obey()
print("ready", flush=True)
time.sleep(60)
"""
STARTER = f"""
import subprocess, sys
from pipelines.leash import Leash
with Leash():
    subprocess.run([sys.executable, "-c", {STEP!r}])
"""


def start_step(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STEP, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("arguments", "number"), [([], signal.SIGTERM), (["deaf"], signal.SIGKILL)])
def test_a_pulled_leash_ends_the_step(arguments: list[str], number: int) -> None:
    with Leash() as leash:
        process = start_step(*arguments)
        leash.pull()
        process.communicate(timeout=30)
    assert process.returncode == -number


def test_ctrl_c_on_the_terminal_leaves_the_step_to_its_starter() -> None:
    with Leash():
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


def test_a_leash_leaves_standard_input_and_environment_as_they_were() -> None:
    before = os.fstat(0)
    with Leash():
        assert os.environ[MARK] == "1"
    assert os.path.samestat(before, os.fstat(0))
    assert MARK not in os.environ


def test_a_process_without_a_leash_is_left_alone() -> None:
    assert obey() is False


@given(st.text(), st.integers(0, 255))
def test_an_event_survives_the_line_that_carries_it(text: str, code: int) -> None:
    event = Event("error", text, code)
    line = event.to_line()
    assert line.count("\n") == 1
    assert from_line(f"    {line.rstrip()}") == event


def test_what_a_step_prints_becomes_events() -> None:
    output = io.StringIO()
    with redirect_stdout(output), spoken("train mini-S/2") as raw:
        sys.stdout.write("one\n\ntwo, ")
        sys.stdout.write("still two")
        emit_error(raw, "why", 2)
    assert [from_line(line) for line in output.getvalue().rstrip("\n").split("\n")] == [
        Event("begin", "train mini-S/2"),
        Event("line", "one"),
        Event("error", "why", 2),
        Event("line", "two, still two"),
        Event("end", "train mini-S/2"),
    ]


def shown(lines: list[str | Event], capsys: pytest.CaptureFixture[str]) -> tuple[StepLog, str, str]:
    """The log stand-in after these lines, what it showed and what it kept."""
    kept = io.StringIO()
    log = StepLog(kept, total=12)
    for line in lines:
        log.write(f"    {line.to_line() if isinstance(line, Event) else line + chr(10)}")
    return log, capsys.readouterr().out, kept.getvalue()


def test_only_what_a_step_says_is_shown_and_all_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    noise = "[KFP Executor 2026-01-01 00:00:00,000 INFO]: Got executor_input:"
    lines = [noise, Event("begin", "prepare"), "from a library", Event("line", "1797 images [4 shards]"), Event("end")]
    _, screen, kept = shown(lines, capsys)
    first, second, third = screen.splitlines()
    assert (first, second) == (" 1/12 prepare", "    1797 images [4 shards]")
    assert third.startswith("    done in ")
    for line in (noise, "from a library", "1797 images [4 shards]"):
        assert line in kept


def test_a_failure_is_the_steps_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    log, _, _ = shown([Event("begin", "train"), Event("error", "train: no dataset", 2)], capsys)
    assert isinstance(log.failure("a.log"), InputError)
    log, _, _ = shown([Event("begin", "train"), Event("error", "train: disk full", 1)], capsys)
    failure = log.failure("a.log")
    assert (type(failure), str(failure)) == (DitError, "train: disk full")


def test_a_step_that_dies_without_a_word_names_its_last_output_and_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    log, _, _ = shown([Event("begin", "train mini-S/2"), "Traceback", "RuntimeError: out of memory", ""], capsys)
    message = str(log.failure("/runs/logs/a.log"))
    assert "train mini-S/2" in message
    assert "RuntimeError: out of memory" in message
    assert "/runs/logs/a.log" in message


def test_a_step_in_a_container_says_why_it_fails_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = (Path(__file__).parents[2] / "configs/digits.yaml").read_text()
    with pytest.raises(SystemExit) as caught:
        run_step("train", study, str(tmp_path), [], "mini-s-2")
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("dit: train mini-S/2: ")
    assert errors.count("\n") == 1
