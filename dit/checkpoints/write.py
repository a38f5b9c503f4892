"""Writes checkpoints during training: training waits for the copy to the host, not for the store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dit.checkpoints.read import incomplete_checkpoints, list_checkpoints
from dit.checkpoints.retention import Retention
from dit.errors import StoreError
from dit.storage import Store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta, FileEntry
from dit.study.runs import Run

Files = Mapping[str, Mapping[str, Tensor]]
"""File name -> tensor name -> tensor."""


class HostCopy:
    """Reusable host buffers for a checkpoint's tensors, page-locked if the tensors are on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, dict[str, Tensor]] = {}

    def reserve(self, files: Files) -> None:
        """Allocate the missing buffers. Locking their pages takes far longer than a copy into them."""
        for file, tensors in files.items():
            buffers = self._buffers.setdefault(file, {})
            for name, tensor in tensors.items():
                if name not in buffers:
                    buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)

    @torch.no_grad()
    def take(self, files: Files) -> dict[str, dict[str, Tensor]]:
        """Return copies of all tensors, valid until the next call. They are complete: the sources may change."""
        self.reserve(files)
        on_gpu = False
        for file, tensors in files.items():
            for name, tensor in tensors.items():
                self._buffers[file][name].copy_(tensor, non_blocking=True)
                on_gpu = on_gpu or tensor.is_cuda
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return self._buffers


class CheckpointWriter:
    """Writes one checkpoint at a time on a thread: its files, then meta.json; then deletes those no longer kept.

    Only rank 0 has a writer. Entering deletes what interrupted uploads left; leaving waits for the thread. An error of
    the thread is raised by the next call.
    """

    def __init__(
        self,
        store: Store,
        config: StudyConfig,
        run: Run,
        retention: Retention,
        before_completion: Callable[[], None],
    ) -> None:
        """`before_completion` is called on the thread before meta.json is written."""
        self._store, self._config, self._run, self._retention = store, config, run, retention
        self._before_completion = before_completion
        self._host = HostCopy()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        self._store.sweep(layout.checkpoints(self._config, self._run))
        for step in incomplete_checkpoints(self._store, self._config, self._run):
            self._store.delete(layout.checkpoint(self._config, self._run, step))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()

    def poll(self) -> bool:
        """Return whether a checkpoint is being written; raises the error of one that failed."""
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._pending is not None

    def reserve(self, files: Files) -> None:
        """Allocate host buffers for these tensors on the thread, so that the first `save` only copies."""
        self.wait()
        self._pending = self._thread.submit(self._host.reserve, files)

    def save(self, files: Files, meta: CheckpointMeta) -> None:
        """Copy the tensors and start to write them; waits first for the previous checkpoint."""
        self.wait()
        self._pending = self._thread.submit(self._write, self._host.take(files), meta)

    def wait(self) -> None:
        """Wait until nothing is being written; raises the error of a checkpoint that failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, files: Files, meta: CheckpointMeta) -> None:
        folder = layout.checkpoint(self._config, self._run, meta.step)
        self._store.delete(folder)
        entries = tuple(upload_tensors(self._store, tensors, f"{folder}/{name}") for name, tensors in files.items())
        complete = meta.model_copy(update={"files": entries})
        self._before_completion()
        self._store.write(f"{folder}/{layout.META}", complete.to_json())
        self._retire(meta.step)

    def _retire(self, written: int) -> None:
        present = list_checkpoints(self._store, self._config, self._run)
        for step in self._retention.retired(present, written):
            self._store.delete(layout.checkpoint(self._config, self._run, step))


def upload_tensors(store: Store, tensors: Mapping[str, Tensor], key: str) -> FileEntry:
    """Write tensors as a safetensors file. Raises StoreError when the scratch folder or the store fails."""
    # One file at a time, so the scratch folder needs room only for the largest.
    try:
        with tempfile.TemporaryDirectory(prefix="dit-checkpoint-") as scratch:
            path = Path(scratch) / "tensors"
            save_file(dict(tensors), path)
            return store.upload(path, key)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{tempfile.gettempdir()}: cannot write {key} there: {error}; free space or set TMPDIR, then run again"
        ) from error
