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
from dit.study.study_file import load
from pipelines.local.docker import LOCAL_IMAGE, find_image, use_containers

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


def test_a_failing_step_fails_every_time(engine: Any, image: str, tmp_path: Path) -> None:
    from kfp.local import config, docker_task_handler, status

    use_containers(load(REPOSITORY / "configs/digits.yaml"), str(tmp_path / "runs"), str(tmp_path / "kfp"))
    runner = config.LocalExecutionConfig.instance.runner
    handler = docker_task_handler.DockerTaskHandler(image, ["sh", "-c", "exit 3"], str(tmp_path / "kfp"), runner)
    # kfp prepares this setting for each task; here there is no task.
    runner.container_run_args.pop("environment")
    assert [handler.run() for _ in range(50)] == [status.Status.FAILURE] * 50
    well = docker_task_handler.DockerTaskHandler(image, ["sh", "-c", "exit 0"], str(tmp_path / "kfp"), runner)
    assert well.run() == status.Status.SUCCESS
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
    assert errors.splitlines()[-1].startswith("dit: evaluate mini-S/2: ")


def test_containers_end_with_a_killed_parent_and_write_a_checkpoint(engine: Any, image: str, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    checkpoints = root / "studies/digits/mini-s-2/checkpoints"
    endless = ("train.steps=1000000", "evaluation.at_steps=[5]", "fit.checkpoint_every=1000000")
    process = start(root, image, *endless)
    wait_until(lambda: any(checkpoints.glob("*/meta.json")) or process.poll() is not None)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not engine.containers.list(all=True, filters={"volume": str(root)}, ignore_removed=True))
    steps = sorted(path.parent.name for path in checkpoints.glob("*/meta.json"))
    assert steps[0] == "step-00000005"
    assert len(steps) == 2


def test_without_the_image_the_next_command_is_named(engine: Any, tmp_path: Path) -> None:  # noqa: ARG001
    code, _, errors = run(tmp_path / "runs", "dit-scaling:none-such")
    assert (code, errors) == (
        2,
        "dit: image dit-scaling:none-such does not exist; run 'make build' first\n",
    )
