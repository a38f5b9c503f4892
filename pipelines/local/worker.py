"""A process that runs parts of a study's pipeline in turn: `python -m pipelines.local.worker HANDLE FOLDER`.

kfp.local runs one task at a time, with settings and standard output per process, so parallel variants need a process
each. HANDLE is a file descriptor from which work items are read, one per line, until it is closed; kfp writes its files
to FOLDER. All output, with the steps' events, goes to standard output.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any, cast

from kfp import local
from kfp.local import docker_task_handler, subprocess_task_handler

from dit.study import study_file
from pipelines.definition.pipeline import build_part
from pipelines.local.docker import run_container, use_containers
from pipelines.local.parallelism import THREADS
from pipelines.local.workers import WorkItem
from pipelines.step.events import Event

_SHELL_SIGNALS = 128
"""A container's exit code is this much above the number of the signal that ended it."""


def main(handle: int, folder: str) -> int:
    """Run work items until the handle is closed; a part of which a step failed ends early."""
    # The parent handles interrupts, and ends the steps by their lifeline.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    # kfp prints the lines of a step to this pipe, where Python would keep them until a block is full.
    cast(TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    # kfp warns about each image without "python" in its name.
    warnings.simplefilter("ignore")
    # kfp's own function replaces "python3" in every argument, the paths of a root and of a study included.
    subprocess_task_handler.replace_python_executable = lambda command, python: [python, *command[1:]]
    # kfp's own line about a failed step has no exit code.
    subprocess_task_handler.run_local_subprocess = _with_signal(subprocess_task_handler.run_local_subprocess)
    docker_task_handler.run_docker_container = _with_signal(run_container)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=folder, workspace_root=f"{folder}/workspace")
    with open(handle) as items:
        _report_ready()
        for line in items:
            try:
                _run(WorkItem.from_line(line), folder)
            except RuntimeError:
                # kfp raises this when a step failed; the step has reported its error.
                _report(Event("failed"))
            _report_ready()
    return 0


def _run(item: WorkItem, folder: str) -> None:
    config = study_file.load_text(item.study)
    with _threads(item.threads):
        if item.image is None:
            build_part(config, item.root, item.part)()
        else:
            use_containers(config, item.root, folder)
            build_part(config, item.root, item.part, item.image)()


def _with_signal(run: Callable[..., int]) -> Callable[..., int]:
    """`run`, which returns the exit code of a step, with an event if a signal ended the step."""

    def run_and_report(*arguments: Any, **options: Any) -> int:
        code = run(*arguments, **options)
        number = -code if code < 0 else code - _SHELL_SIGNALS
        if number > 0:
            _report(Event("killed", code=number))
        return code

    return run_and_report


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """While the body runs, new processes use `count` threads."""
    before = dict(os.environ)
    if count is not None:
        os.environ[THREADS] = str(count)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _report_ready() -> None:
    _report(Event("ready"))


def _report(event: Event) -> None:
    sys.stdout.write(event.to_line())
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
