"""An image that was built with a password of the package index does not have it. Needs an engine and the network."""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = "mlflow/Dockerfile"
# Shows that `make build` passes the file to the build.
READS_IT = """
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN --mount=type=secret,id=netrc,target=/root/.netrc grep -q planted /root/.netrc
"""
CHUNK = 1 << 20
pytestmark = [pytest.mark.containers, pytest.mark.slow, pytest.mark.timeout(1200)]


def engine(*arguments: str) -> str:
    done = subprocess.run([os.environ.get("DOCKER", "docker"), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def password() -> str:
    return f"planted-{secrets.token_hex(8)}"


@pytest.fixture(scope="module")
def built(password: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image that `make build` makes without the cache, with the password in a netrc file."""
    folder = tmp_path_factory.mktemp("netrc")
    netrc, reader, tag = folder / "netrc", folder / "Dockerfile", f"dit-scaling-test:{secrets.token_hex(4)}"
    netrc.write_text(f"machine index.invalid login somebody password {password}\n")
    reader.write_text(READS_IT)
    settings = [f"NETRC={netrc}", "DOCKER_FLAGS=--no-cache"]
    settings += [f"{name}={os.environ[name]}" for name in ("BASE_IMAGE", "DOCKER") if name in os.environ]
    dry = subprocess.run(["make", "-n", "build", *settings], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    (line,) = [line for line in dry.stdout.splitlines() if DOCKERFILE in line]
    words = [tag if word.startswith("dit-scaling-mlflow:") else word for word in shlex.split(line)]
    for file in (str(reader), DOCKERFILE):
        command = shlex.join([file if word == DOCKERFILE else word for word in words])
        subprocess.run(command, shell=True, cwd=REPOSITORY, check=True)
    yield tag
    engine("image", "rm", tag)


def found(image: str, texts: set[bytes]) -> set[bytes]:
    """Those of the texts that are in a layer, the configuration or the manifest of an image."""
    result: set[bytes] = set()
    command = [os.environ.get("DOCKER", "docker"), "save", image]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        before = b""
        while chunk := process.stdout.read(CHUNK):
            result |= {text for text in texts if text in before + chunk}
            before = chunk[-100:]
    return result


def test_no_layer_and_no_line_of_the_history_has_the_password(built: str, password: str) -> None:
    assert password not in engine("history", "--no-trunc", built) + engine("image", "inspect", built)
    # That MLflow's files are found shows that layers are not compressed.
    known = b"class MlflowException(Exception)"
    assert found(built, {password.encode(), known}) == {known}
