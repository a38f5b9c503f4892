"""A worker process passes on the output of its steps while they run."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

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
