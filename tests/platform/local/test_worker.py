"""A worker process passes on the output of its steps while they run."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from dit.errors import DitError
from pipelines.local.workers import WorkerPool
from pipelines.step.events import from_line

PATIENCE_SECONDS = 120
# A worker without work, and then a step that prints a line and waits for its parent.
PROGRAM = """
import os, sys
from pipelines.local.worker import main
read, write = os.pipe()
os.close(write)
main(read, sys.argv[1])
print("a line of the step")
sys.stdin.read()
"""


def test_a_line_arrives_before_the_step_ends(tmp_path: Path) -> None:
    """Python keeps output for a pipe until a block is full, unless the caller has set PYTHONUNBUFFERED."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline().decode()]
            assert select.select([process.stdout], [], [], PATIENCE_SECONDS)[0], "no second line"
            lines.append(process.stdout.readline().decode())
        finally:
            process.kill()
    event = from_line(lines[0].rstrip())
    assert event is not None
    assert event.kind == "ready"
    assert lines[1] == "a line of the step\n"


def test_a_path_with_the_name_of_the_interpreter_reaches_the_step(tmp_path: Path) -> None:
    """kfp replaces the name everywhere in a command."""
    code = """
import os, sys
from kfp.local import subprocess_task_handler
from pipelines.local.worker import main
read, write = os.pipe()
os.close(write)
main(read, sys.argv[1])
print(*subprocess_task_handler.replace_python_executable(["python3", "-m", "x", "/python3/runs"], "/my python3/bin"))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "/my python3/bin -m x /python3/runs"


def test_a_worker_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(DitError, match=r"^/no/such/python: worker 1 cannot start: No such file") as caught:
        WorkerPool(1, tmp_path, lambda *_: None, lambda: None).__enter__()
    assert "\n" not in str(caught.value)
