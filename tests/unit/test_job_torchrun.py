"""A pod of a job before it becomes torchrun: with a stand-in for torch's own program, which takes seconds to load."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.jobs.torchrun import TORCHRUN

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["-m", "dit", "train", "/etc/dit/study.yaml"]


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """One that nobody listens on yet."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        yield found


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    program = tmp_path.joinpath(*TORCHRUN.split(".")).with_suffix(".py")
    program.parent.mkdir(parents=True)
    for package in (program.parent.parent, program.parent):
        (package / "__init__.py").touch()
    program.write_text("import sys\nprint(*sys.argv[1:])\n")
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}


def begin(environment: dict[str, str], endpoint: str | None) -> subprocess.Popen[str]:
    given = {"PET_RDZV_ENDPOINT": endpoint} if endpoint else {}
    command = [sys.executable, "-m", "pipelines.jobs.torchrun", *ARGUMENTS]
    return subprocess.Popen(command, env=environment | given, stdout=subprocess.PIPE, text=True)


def test_a_pod_begins_when_the_one_that_holds_the_rendezvous_answers(
    port: socket.socket, environment: dict[str, str]
) -> None:
    number = port.getsockname()[1]
    with begin(environment, f"127.0.0.1:{number}") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"waits for 127.0.0.1:{number}, where the pods meet: ")
        port.listen()
        assert process.stdout.read() == " ".join(ARGUMENTS) + "\n"
    assert process.returncode == 0


@pytest.mark.parametrize("endpoint", [f"{socket.gethostname()}:1", None], ids=["the pod itself", "none"])
def test_the_pod_that_holds_it_begins_at_once_as_does_one_of_another_kind_of_job(
    endpoint: str | None, environment: dict[str, str]
) -> None:
    with begin(environment, endpoint) as process:
        assert process.stdout is not None
        assert process.stdout.read() == " ".join(ARGUMENTS) + "\n"


def test_a_pod_that_waits_ends_when_it_is_told(port: socket.socket, environment: dict[str, str]) -> None:
    with begin(environment, f"127.0.0.1:{port.getsockname()[1]}") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == ""
    assert process.returncode == -signal.SIGTERM
