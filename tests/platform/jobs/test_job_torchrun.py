"""torchrun in a pod: its start with a fake torchrun, its exit codes with the real one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dit.errors import DivergedError, InputError, PeerError, StoreError
from pipelines.jobs.torchrun import TORCHRUN, worst

ROOT = Path(__file__).parents[3]
ARGUMENTS = ["-m", "dit", "train", "/etc/dit/study.yaml"]


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """A port on which nothing listens yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    program = tmp_path.joinpath(*TORCHRUN.split(".")).with_suffix(".py")
    program.parent.mkdir(parents=True)
    for package in (program.parent.parent, program.parent):
        (package / "__init__.py").touch()
    program.write_text("def main(arguments):\n    print(*arguments)\n")
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}


def begin(environment: dict[str, str], endpoint: str | None) -> subprocess.Popen[str]:
    given = {"PET_RDZV_ENDPOINT": endpoint} if endpoint else {}
    command = [sys.executable, "-m", "pipelines.jobs.torchrun", *ARGUMENTS]
    return subprocess.Popen(command, env=environment | given, stdout=subprocess.PIPE, text=True)


def test_torchrun_starts_when_the_rendezvous_answers(port: socket.socket, environment: dict[str, str]) -> None:
    number = port.getsockname()[1]
    with begin(environment, f"127.0.0.1:{number}") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"waiting for the rendezvous at 127.0.0.1:{number}: ")
        port.listen()
        assert process.stdout.read() == " ".join(ARGUMENTS) + "\n"
    assert process.returncode == 0


@pytest.mark.parametrize("endpoint", [f"{socket.gethostname()}:1", None], ids=["the pod itself", "none"])
def test_torchrun_starts_at_once_in_the_pod_of_the_rendezvous_and_in_a_trainjob(
    endpoint: str | None, environment: dict[str, str]
) -> None:
    with begin(environment, endpoint) as process:
        assert process.stdout is not None
        assert process.stdout.read() == " ".join(ARGUMENTS) + "\n"


def test_a_pod_that_waits_for_the_rendezvous_ends_on_sigterm(port: socket.socket, environment: dict[str, str]) -> None:
    with begin(environment, f"127.0.0.1:{port.getsockname()[1]}") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == ""
    assert process.returncode == -signal.SIGTERM


FINAL, GIVEN, PEER, AGAIN = (kind.exit_code for kind in (DivergedError, InputError, PeerError, StoreError))
TERMINATED = -signal.SIGTERM


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([FINAL, FINAL], FINAL),
        ([TERMINATED, 128 + signal.SIGTERM, FINAL], FINAL),
        ([AGAIN, PEER, GIVEN], GIVEN),
        ([PEER, AGAIN], AGAIN),
        ([PEER, -signal.SIGKILL], 128 + signal.SIGKILL),
        ([PEER, TERMINATED], PEER),
        ([TERMINATED], 128 + signal.SIGTERM),
    ],
)
def test_the_exit_code_is_that_of_the_process_that_failed(codes: list[int], code: int) -> None:
    assert worst(codes) == code


def launched(program: Path, code: str, processes: int) -> subprocess.Popen[str]:
    program.write_text(f"import os, sys, time\n{code}\n")
    number = f"--nproc-per-node={processes}"
    command = [sys.executable, "-m", "pipelines.jobs.torchrun", "--standalone", number, str(program)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_torchrun_exits_with_the_code_of_its_process(tmp_path: Path) -> None:
    code = f"sys.exit({FINAL}) if os.environ['RANK'] == '1' else time.sleep(1000)"
    process = launched(tmp_path / "rank.py", code, 2)
    _, errors = process.communicate()
    assert process.returncode == FINAL, errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_running_pod_ends_on_sigterm(tmp_path: Path) -> None:
    with launched(tmp_path / "rank.py", "print('runs', flush=True); time.sleep(1000)", 1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
