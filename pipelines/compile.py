"""A study into the file that Kubeflow Pipelines runs: `dit compile`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kfp import compiler

from dit.errors import DitError, InputError, MissingError
from dit.planning.cost import check_job_size
from dit.study.config import StudyConfig
from pipelines.definition.pipeline import build
from pipelines.jobs.names import BY_DIGEST

DIGEST = Path("build/image.digest")
"""The reference that `make push` wrote."""


def package_of(config: StudyConfig) -> Path:
    """Default file of a study's pipeline."""
    return Path("build") / f"{config.study}.yaml"


def compile_study(config: StudyConfig, root: str, image: str, output: Path) -> Path:
    """Write the study's pipeline; equal arguments give equal files.

    Raises InputError when pods cannot reach the root, the image has no digest or the job cannot share the batch.
    Raises DitError when the file cannot be written.
    """
    if not root.startswith("s3://") or not root.removeprefix("s3://").strip("/"):
        raise InputError(f"root {root}: pods cannot reach a folder of this machine; give s3://bucket/prefix")
    check_job_size(config)
    if not image:
        raise InputError("no image is given; run 'make build push REGISTRY=...' or give --image")
    if not BY_DIGEST.match(image):
        # The image's name is part of the key of kfp's cache and of a job's spec hash.
        raise InputError(f"image {image}: a tag may mean another image tomorrow; give NAME@sha256:..., as in {DIGEST}")
    # kfp reads the sources of all callers for each of hundreds of settings. A new thread has few callers.
    with ThreadPoolExecutor(1) as thread:
        pipeline = thread.submit(build, config, root, image=image).result()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(pipeline, str(output))
    except OSError as error:
        raise DitError(f"{output}: {error.strerror or error}; give another file by --output") from None
    return output


def pushed_image(digest: Path = DIGEST) -> str:
    """The image last pushed, by digest.

    Raises MissingError when none was pushed.
    """
    try:
        return digest.read_text().strip()
    except OSError:
        raise MissingError(
            f"{digest} does not exist; run 'make build push REGISTRY=...' first, or give --image"
        ) from None
