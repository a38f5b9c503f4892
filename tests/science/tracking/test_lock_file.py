"""Lock files, which show whether the process that holds them is alive."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from processes import python

from dit.tracking.lock_file import LockFile, is_held


def _holder(path: Path) -> subprocess.Popen[str]:
    code = (
        "import sys, time, pathlib; from dit.tracking.lock_file import LockFile\n"
        "lock = LockFile.take(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(1000)"
    )
    holder = python(code, path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_lock_is_free_after_its_holder_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _holder(path) as holder:
        assert is_held(path)
        assert LockFile.take(path) is None
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert not is_held(path)
    lock = LockFile.take(path)
    assert lock is not None
    assert is_held(path)
    lock.release(remove=True)
    assert not is_held(path)


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    lock = LockFile.new(tmp_path)
    (ready, tell), (end, keep) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(keep)
        os.write(tell, b"x")
        os.read(end, 1)
        os._exit(0)
    os.read(ready, 1)
    assert is_held(lock.path)
    lock.abandon()  # as the parent's death would, without freeing the lock for others
    assert not is_held(lock.path)
    os.close(keep)
    os.waitpid(child, 0)
    for handle in (ready, tell, end):
        os.close(handle)
