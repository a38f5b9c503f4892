"""A pool of worker processes, each of which runs one part of a study at a time. Does not import kfp."""

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
from dit.errors import DitError
from dit.storage.base import local_errors
from pipelines.step.events import from_line
from pipelines.step.step import CLAIMS

Take = Callable[[int, str], None]
"""Receives a worker's number and a line of its output."""


@dataclass(frozen=True)
class WorkItem:
    """A part of a study's pipeline, with the number of threads and the image of its steps."""

    study: str
    """The study file's text."""
    root: str
    part: str
    """See `pipelines.definition.pipeline.build_part`."""
    threads: int | None = None
    """Threads of each step; None leaves the number to the environment."""
    image: str | None = None
    """Image of the steps' containers; None runs them as processes."""

    def to_line(self) -> str:
        """The item as one line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Self:
        """The item in a line from `to_line`."""
        return cls(**json.loads(line))


def _never(_worker: int, _item: WorkItem) -> bool:
    return False


class WorkerError(Exception):
    """A worker ended before its work was done."""

    def __init__(self, worker: int, exit_code: int) -> None:
        super().__init__(f"worker {worker} ended early")
        self.worker = worker
        self.exit_code = exit_code
        """Negative for a signal."""


class WorkerPool:
    """Worker processes; a context manager. Enter it inside a lifeline, which ends the workers' steps.

    On an error it calls `end_all`, then waits until all workers have ended.
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

    def run(self, items: Iterable[WorkItem], may_fail: Callable[[int, WorkItem], bool] = _never) -> None:
        """Give items in this order to workers as they become free; returns when all are done.

        `may_fail(worker, item)` is asked whether the others go on when an item fails.

        Raises WorkerError as soon as a worker ends early, or an item fails that may not.
        """
        waiting = deque(items)
        while waiting or any(worker.busy for worker in self._workers.values()):
            for worker in self._workers.values():
                if waiting and worker.ready:
                    worker.give(waiting.popleft())
            ended = self._listen()
            if ended:
                raise WorkerError(*ended[0])
            for worker in self._workers.values():
                failed, worker.failed = worker.failed, None
                if failed is not None and not may_fail(worker.number, failed):
                    raise WorkerError(worker.number, 1)

    def _listen(self) -> list[tuple[int, int]]:
        """Wait for output and pass it on; returns numbers and exit codes of the workers that have ended."""
        ended = []
        for key, _ in self._selector.select():
            worker: _Worker = key.data
            for line in worker.read():
                event = from_line(line)
                if event is not None and event.kind == "ready":
                    worker.ready, worker.busy = True, False
                elif event is not None and event.kind == "failed":
                    worker.failed = worker.item
                else:
                    self._take(worker.number, line)
            if worker.ended:
                self._selector.unregister(worker.output)
                del self._workers[worker.number]
                ended.append((worker.number, worker.exit_code))
        return ended


class _Worker:
    """One worker's process. It and its steps inherit standard input, the lifeline.

    Raises StoreError when there is no room for its files, DitError when the process cannot start.
    """

    def __init__(self, number: int, folder: Path) -> None:
        with local_errors(folder):
            folder.mkdir()
        take, give = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.local.worker", str(take), str(folder)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(take,),
                env=os.environ | {"TMPDIR": str(folder), CLAIMS: str(folder.parent)},
            )
        except OSError as error:
            raise DitError(
                f"{sys.executable}: worker {number} cannot start: {error.strerror}; end other processes, or lower"
                " fit.parallel_variants, then run again"
            ) from error
        os.close(take)
        assert self._process.stdout is not None
        self.number, self.output = number, self._process.stdout.fileno()
        self.ready = self.busy = self.ended = False
        self.exit_code = 0
        self.item: WorkItem | None = None
        self.failed: WorkItem | None = None
        """The last item, if it failed and nobody has been told."""
        self._items = open(give, "wb")  # noqa: SIM115
        self._buffer = LineBuffer()

    def give(self, item: WorkItem) -> None:
        # If the worker has died, its output ends, which `read` notices.
        self.ready, self.busy, self.item = False, True, item
        with suppress(BrokenPipeError):
            self._items.write(item.to_line().encode())
            self._items.flush()

    def read(self) -> list[str]:
        """The whole lines that have arrived; at the end of the output the rest, after the process has ended."""
        if data := os.read(self.output, 1 << 16):
            return self._buffer.add(data)
        self.ended = True
        self.dismiss()
        self.exit_code = self._process.wait()
        return self._buffer.finish()

    def dismiss(self) -> None:
        """Let the worker end after its current item."""
        with suppress(BrokenPipeError):
            self._items.close()
