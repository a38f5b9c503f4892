"""Worker processes, each of which runs one part of a study at a time; the starter's side. Knows no kfp."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from dit.console.streams import LineBuffer
from pipelines.step.events import from_line

Take = Callable[[int, str], None]
"""Takes a worker's number and a line that it printed."""


@dataclass(frozen=True)
class WorkItem:
    """A part of a study's pipeline, on how many threads its steps compute, and in what.

    None leaves the threads to the environment.
    """

    study: str
    """The study file's text."""
    root: str
    part: str
    """See `pipelines.definition.pipeline.build_part`."""
    threads: int | None = None
    image: str | None = None
    """Run the steps in containers of this image; None makes them processes."""

    def to_line(self) -> str:
        """One line of text."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Self:
        """The job in such a line."""
        return cls(**json.loads(line))


class WorkerError(Exception):
    """A worker ended before its work."""

    def __init__(self, worker: int) -> None:
        super().__init__(f"worker {worker} ended early")
        self.worker = worker


class WorkerPool:
    """Processes that share the work; a context manager, to be entered under a lifeline, which alone ends their steps.

    Left by an error, it pulls the lifeline and waits until all have ended.
    """

    def __init__(self, count: int, folder: Path, take: Take, end_all: Callable[[], None]) -> None:
        self._count, self._folder, self._take, self._end_all = count, folder, take, end_all
        self._workers: dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        for number in range(1, self._count + 1):
            worker = _Worker(number, self._folder / f"worker-{number}")
            self._workers[number] = worker
            self._selector.register(worker.output, selectors.EVENT_READ, worker)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._end_all()
        for worker in self._workers.values():
            worker.dismiss()
        while self._workers:
            self._listen()
        self._selector.close()

    def run(self, jobs: Iterable[WorkItem]) -> None:
        """Run jobs in this order, as workers become free, until all are done; WorkerError as soon as one has failed."""
        waiting = deque(jobs)
        while waiting or any(worker.busy for worker in self._workers.values()):
            for worker in self._workers.values():
                if waiting and worker.ready:
                    worker.give(waiting.popleft())
            ended = self._listen()
            if ended:
                raise WorkerError(ended[0])

    def _listen(self) -> list[int]:
        """Wait for output and pass it on; the workers that have ended."""
        ended = []
        for key, _ in self._selector.select():
            worker: _Worker = key.data
            for line in worker.read():
                event = from_line(line)
                if event is not None and event.kind == "ready":
                    worker.ready, worker.busy = True, False
                else:
                    self._take(worker.number, line)
            if worker.ended:
                self._selector.unregister(worker.output)
                del self._workers[worker.number]
                ended.append(worker.number)
        return ended


class _Worker:
    """One worker's process. Standard input, which is a lifeline, passes on to it and its steps."""

    def __init__(self, number: int, folder: Path) -> None:
        folder.mkdir()
        take, give = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.local.worker", str(take), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(take,),
            env=os.environ | {"TMPDIR": str(folder)},
        )
        os.close(take)
        assert self._process.stdout is not None
        self.number, self.output = number, self._process.stdout.fileno()
        self.ready = self.busy = self.ended = False
        self._jobs = open(give, "wb")  # noqa: SIM115
        self._buffer = LineBuffer()

    def give(self, job: WorkItem) -> None:
        """Have it run a job. That a worker has died meanwhile shows in its output's end."""
        self.ready, self.busy = False, True
        with suppress(BrokenPipeError):
            self._jobs.write(job.to_line().encode())
            self._jobs.flush()

    def read(self) -> list[str]:
        """The whole lines that have come; at the output's end, after waiting for the process, all that is left."""
        if data := os.read(self.output, 1 << 16):
            return self._buffer.add(data)
        self.ended = True
        self.dismiss()
        self._process.wait()
        return self._buffer.finish()

    def dismiss(self) -> None:
        """Have it end when it has done the job it is at."""
        with suppress(BrokenPipeError):
            self._jobs.close()
