"""A launcher in a child process: killed and started again, or failed by itself."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from pipelines.cluster import retry
from pipelines.step.child import ChildKilled, run_in_child


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST", 0.001)


def test_a_killed_launcher_is_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tries = tmp_path / "tries"

    def work() -> None:
        with open(tries, "a") as file:
            file.write(f"{os.getpid()}\n")
        if len(tries.read_text().split()) < 3:
            os.kill(os.getpid(), signal.SIGKILL)

    run_in_child(work, retries=3)
    pids = tries.read_text().split()
    assert len(set(pids)) == 3
    assert str(os.getpid()) not in pids
    assert capsys.readouterr().out.count("the launcher was killed by signal 9 (SIGKILL); memory?; retry in") == 2


def test_a_launcher_that_is_always_killed_fails_with_the_signal() -> None:
    with pytest.raises(ChildKilled, match=r"killed by signal 9 \(SIGKILL\)") as caught:
        run_in_child(lambda: os.kill(os.getpid(), signal.SIGKILL), retries=1)
    assert caught.value.exit_code == 137


def test_a_launcher_that_fails_by_itself_is_not_started_again(tmp_path: Path) -> None:
    tries = tmp_path / "tries"

    def work() -> None:
        with open(tries, "a") as file:
            file.write("x")
        sys.exit(3)

    with pytest.raises(SystemExit) as caught:
        run_in_child(work, retries=3)
    assert caught.value.code == 3
    assert tries.read_text() == "x"
