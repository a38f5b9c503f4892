"""No output of a study contains a secret of its environment."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from s3_proxy import BUCKET, raw

REPOSITORY = Path(__file__).parents[2]
STUDY = "configs/digits.yaml"
IMAGE = f"registry.example/dit@sha256:{'0' * 64}"
MARK = "described-here"
PLANTED = {
    "AWS_ACCESS_KEY_ID": "PLANTEDKEYID",
    "AWS_SECRET_ACCESS_KEY": "planted-s3-secret",
    "AWS_SESSION_TOKEN": "planted-s3-token",
    "MLFLOW_TRACKING_USERNAME": "planted-mlflow-user",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "PIP_INDEX_URL": "https://somebody:planted-index-password@index.invalid/simple",
}
SECRETS = [value.rpartition("@")[0].rpartition(":")[2] or value for value in PLANTED.values()]
SMALL = (
    f"description={MARK}",
    "variants=[mini-S/2]",
    "train.steps=20",
    "train.global_batch=32",
    "evaluation.at_steps=[20]",
    "evaluation.resamples=40",
    "sampling.steps=5",
    "sampling.num_samples=60",
)


def command(*words: str) -> list[str]:
    settings = [word for override in SMALL for word in ("--set", override)]
    return [sys.executable, "-m", "dit", *words, *settings]


def arguments_of_all(mark: bytes) -> Iterator[bytes]:
    """Arguments of each running process that has `mark` in its environment."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes():
                yield (process / "cmdline").read_bytes()


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file; members of a compressed file, such as a sample set, one by one."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield str(path.relative_to(folder)), path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from ((f"{path.name}/{name}", archive.read(name)) for name in archive.namelist())


def holding(text: str, outputs: dict[str, bytes]) -> list[str]:
    return [name for name, content in outputs.items() if text.encode() in content]


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.usefixtures("s3_environment")
def test_no_output_of_a_study_contains_a_secret_of_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**PLANTED, "OMP_NUM_THREADS": "1", "TEST_MARK": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    root, log, arguments = f"s3://{BUCKET}/root", tmp_path / "output", set()
    with log.open("wb") as output:
        study = command("study", STUDY, "--root", root)
        process = subprocess.Popen(study, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            arguments.update(arguments_of_all(str(tmp_path).encode()))
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    assert process.returncode == 0, log.read_text()[-3000:]
    (tmp_path / "arguments").write_bytes(b"\n".join(arguments))
    compiled = tmp_path / "compiled.yaml"
    for words in (
        ("compile", STUDY, "--root", root, "--image", IMAGE, "--output", str(compiled)),
        ("render", STUDY, "--root", root, "--image", IMAGE, "--variant", "mini-S/2"),
    ):
        done = subprocess.run(command(*words), cwd=REPOSITORY, capture_output=True, check=True)
        (tmp_path / words[0]).write_bytes(done.stdout + done.stderr)

    outputs = dict(contents(tmp_path))
    s3 = raw()
    for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]:
        outputs[entry["Key"]] = s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
    # What is looked through: store, MLflow's database and artifacts, logs, arguments, pipeline, job.
    for part in ("report.html", "mlflow.db", ".log", "arguments", "compiled.yaml", "render"):
        assert [name for name in holding(MARK, outputs) if name.endswith(part)], part
    assert len(SECRETS) == len({*SECRETS})
    assert {secret: holding(secret, outputs) for secret in SECRETS} == {secret: [] for secret in SECRETS}
