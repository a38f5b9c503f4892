"""A step ends with its parent; tested with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pipelines.step.parent_watch import VARIABLE, ChildLifeline, end_with_parent

STEP = """
import signal, sys, time
from pipelines.step import parent_watch
if "deaf" in sys.argv:
    parent_watch.GRACE_SECONDS = 0.5
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
assert parent_watch.end_with_parent()
print("ready", flush=True)
time.sleep(1000)
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
def test_pulling_the_lifeline_ends_the_step(arguments: list[str], number: int) -> None:
    with ChildLifeline() as lifeline:
        process = start_step(*arguments)
        lifeline.pull()
        process.communicate(timeout=500)
    assert process.returncode == -number


def test_a_step_ignores_ctrl_c_until_its_parent_ends_it() -> None:
    with ChildLifeline():
        process = start_step()
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
    process.communicate(timeout=500)
    assert process.returncode == -signal.SIGTERM


def test_a_step_does_not_outlive_a_killed_parent() -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    assert starter.stdout.readline() == "ready\n"
    starter.kill()
    # The pipe closes when the last process that could write to it, the step, is gone.
    assert starter.communicate(timeout=500) == ("", None)


def test_a_lifeline_restores_standard_input_and_environment() -> None:
    before = os.fstat(0)
    with ChildLifeline():
        assert os.environ[VARIABLE] == "1"
    assert os.path.samestat(before, os.fstat(0))
    assert VARIABLE not in os.environ


def test_without_a_lifeline_nothing_is_watched() -> None:
    assert end_with_parent() is False
