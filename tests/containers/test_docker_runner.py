"""Studies in containers, by kfp.local's DockerRunner. Needs an engine and the image of `make build`, or TEST_IMAGE."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dataset_fixtures import flip_bit

from dit.errors import FinalError, InputError
from dit.study import layout
from pipelines.local.docker import LOCAL_IMAGE, find_image, run_container

REPOSITORY = Path(__file__).parents[2]
OVERRIDES = (
    "variants=[mini-S/2]",
    "train.steps=20",
    "evaluation.resamples=40",
    "sampling.steps=5",
    "sampling.num_samples=60",
)
SECONDS = 500
pytestmark = [pytest.mark.containers, pytest.mark.timeout(2 * SECONDS)]


@pytest.fixture(scope="module")
def image() -> str:
    try:
        return find_image(os.environ.get("TEST_IMAGE", LOCAL_IMAGE))
    except InputError as error:
        pytest.exit(str(error), returncode=2)


@pytest.fixture
def engine(image: str) -> Iterator[Any]:  # noqa: ARG001
    import docker

    client = docker.from_env()
    yield client
    client.close()


def start(root: Path, image: str, *overrides: str) -> subprocess.Popen[str]:
    settings = [word for override in (*OVERRIDES, *overrides) for word in ("--set", override)]
    command = [sys.executable, "-m", "dit", "study", "configs/digits.yaml", "--root", str(root)]
    return subprocess.Popen(
        [*command, "--runner", "docker", "--image", image, *settings],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(root: Path, image: str, *overrides: str) -> tuple[int, str, str]:
    process = start(root, image, *overrides)
    output, errors = process.communicate(timeout=SECONDS)
    return process.returncode, output, errors


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_container_has_its_exit_code_every_time(engine: Any, image: str, tmp_path: Path) -> None:
    volumes = {str(tmp_path / "kfp"): {"bind": "/kfp", "mode": "rw"}}
    codes = [3] * 20 + [0]
    assert [run_container(engine, image, ["-c", f"exit {code}"], volumes, entrypoint="sh") for code in codes] == codes
    assert engine.containers.list(all=True, filters={"volume": str(tmp_path / "kfp")}) == []


def test_a_study_ends_with_its_report_and_a_failed_step_has_a_reason(image: str, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    code, output, errors = run(root, image)
    assert code == 0, errors
    report = root / "studies/digits/report/report.html"
    assert str(report) in output
    assert {path.stat().st_uid for path in root.rglob("*")} == {os.getuid()}
    variant = root / "studies/digits/mini-s-2"
    for part in variant.glob("samples/*/*/part-00000.npz"):
        flip_bit(part)
    for record in variant.glob("metrics/*.json"):
        record.unlink()
    code, _, errors = run(root, image)
    assert code == FinalError.exit_code
    assert [line for line in errors.splitlines() if line.startswith("dit: ")] == errors.splitlines()[-1:]
    assert errors.splitlines()[-1].startswith("dit: evaluate mini-S/2 step 20: ")


def test_containers_end_with_a_killed_parent_and_write_a_checkpoint(engine: Any, image: str, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    variant = root / "studies/digits/mini-s-2"
    endless = (
        "train.steps=1000000",
        "evaluation.at_steps=[1000000]",
        "fit.checkpoint_every=1000000",
        "fit.log_every=5",
    )
    process = start(root, image, *endless)
    wait_until(lambda: (variant / layout.JOURNAL).exists() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not engine.containers.list(all=True, filters={"volume": str(root)}, ignore_removed=True))
    assert len(list(variant.glob("checkpoints/*/meta.json"))) == 1


def test_without_the_image_the_next_command_is_named(engine: Any, tmp_path: Path) -> None:  # noqa: ARG001
    code, _, errors = run(tmp_path / "runs", "dit-scaling:none-such")
    assert (code, errors) == (
        2,
        "dit: image dit-scaling:none-such does not exist; run 'make build' first\n",
    )
