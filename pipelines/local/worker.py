"""A process that runs parts of a study's pipeline, one after the other: `python -m pipelines.local.worker`.

kfp.local runs one task at a time, and its settings and its use of standard output belong to the whole process; so what
is to run side by side needs a process each. HANDLE is a file descriptor on which work items come, a line each, until it
is closed; FOLDER takes kfp's leftovers. All output goes to standard output, the steps' events among it.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from kfp import local

from dit.study import study_file
from pipelines.definition.pipeline import build_part
from pipelines.local.docker import use_containers
from pipelines.local.parallelism import THREADS
from pipelines.local.workers import WorkItem
from pipelines.step.events import Event


def main(handle: int, folder: str) -> int:
    """Run every work item that comes; the exit code, 1 when a step failed, after which no more are run."""
    # The starter decides what an interrupt of all processes means, and ends the steps by their lifeline.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    # kfp warns of every image without "python" in its name.
    warnings.simplefilter("ignore")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=folder, workspace_root=f"{folder}/workspace")
    with open(handle) as items:
        _report_ready()
        for line in items:
            try:
                _run(WorkItem.from_line(line), folder)
            except RuntimeError:
                # kfp's way to say that a step failed; the step has said why.
                return 1
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


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """While the body runs, processes that it starts compute on so many threads."""
    before = dict(os.environ)
    if count is not None:
        os.environ[THREADS] = str(count)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _report_ready() -> None:
    sys.stdout.write(Event("ready").to_line())
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
