"""`dit study --runner docker`: steps in containers of the image, by kfp.local's DockerRunner.

A step runs as the calling user, in the host's network. Of this machine's files it has only the store, the cache and
the inputs of the study, each mounted under its own path.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import has_magic
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dit import __version__
from dit.console.streams import whole_lines
from dit.errors import InputError, MissingError
from dit.storage import cache_dir
from dit.storage.base import local_errors
from dit.study.config import AdmReference, FolderSource, StudyConfig, TarSource, VaeCodec
from pipelines.step import parent_watch

LOCAL_IMAGE = f"dit-scaling:{__version__}"
"""The image that `make build` builds."""

_FORWARDED = ("AWS_", "CUDA_VISIBLE_DEVICES", "DIT_", "MLFLOW_", "OMP_")
_SHARED_MEMORY = "1g"


def find_image(image: str = LOCAL_IMAGE) -> str:
    """The image's name, once the engine has the image; pulls it if the name has a registry.

    Raises InputError when no Docker engine answers, MissingError when the image does not exist.
    """
    import docker

    try:
        client = docker.from_env()
    except docker.errors.DockerException as error:
        raise InputError(f"no Docker engine answers: {error}; start one, or set DOCKER_HOST") from None
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        if "/" not in image:
            raise MissingError(f"image {image} does not exist; run 'make build' first") from None
        try:
            client.images.pull(image)
        except docker.errors.DockerException as error:
            raise MissingError(f"image {image} cannot be pulled: {error}; run 'make build push REGISTRY=...'") from None
    finally:
        client.close()
    return image


def use_containers(config: StudyConfig, root: str, folder: str) -> None:
    """Make kfp.local run the study's steps in containers from now on; kfp writes its files to `folder`."""
    from kfp import local

    forwarded = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
    runner = local.DockerRunner(
        entrypoint=[],
        environment={**forwarded, "DIT_CACHE": str(cache_dir())},
        mounts=container_mounts(config, root),
        network_mode="host",
        shm_size=_SHARED_MEMORY,
        user=f"{os.getuid()}:{os.getgid()}",
        # Paths in the study are relative to the caller's folder.
        working_dir=os.getcwd(),
        **_gpus(),
    )
    local.init(runner, pipeline_root=folder, workspace_root=f"{folder}/workspace")


def run_container(client: Any, image: str, command: list[str], volumes: dict[str, Any], **settings: Any) -> int:
    """Run a container, print its output, remove it, and return its exit code.

    In place of kfp's own function, which lets the engine remove a container when it ends, and reports success if the
    container is already gone: a third of the failed steps were reported as successful.
    """
    for place in volumes:
        # A folder that the engine creates belongs to root.
        os.makedirs(place, exist_ok=True)
    bound = parent_watch.VARIABLE in os.environ
    container = client.containers.create(image, command, volumes=volumes, stdin_open=bound, **settings)
    try:
        with _lifeline_of(container, bound):
            container.start()
            for line in whole_lines(container.logs(stream=True, follow=True)):
                # Without a reader the step still has to write its checkpoint.
                with suppress(BrokenPipeError):
                    print(line, flush=True)  # noqa: T201  kfp indents only printed output
            return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)


@contextmanager
def _lifeline_of(container: Any, bound: bool) -> Iterator[None]:
    """Extend this process's lifeline: the container's standard input closes with the lifeline or with this process."""
    if not bound:
        yield
        return
    attached = container.attach_socket(params={"stdin": 1, "stream": 1})
    over, end = os.pipe()

    def watch() -> None:
        ready, _, _ = select.select([0, over], [], [])
        if 0 in ready:
            with socket.socket(fileno=os.dup(attached.fileno())) as connection:
                connection.shutdown(socket.SHUT_RDWR)

    watcher = threading.Thread(target=watch, name="lifeline of a container")
    watcher.start()
    try:
        yield
    finally:
        os.close(end)
        watcher.join()
        os.close(over)
        attached.close()


def container_mounts(config: StudyConfig, root: str) -> list[Any]:
    """Mounts of the store and the cache, and read-only of the study's inputs, each under its own path."""
    from docker.types import Mount

    writable = [cache_dir()]
    parts = urlsplit(root)
    if parts.scheme in ("", "file"):
        writable.append(Path(unquote(parts.path)).absolute())
    for place in writable:
        with local_errors(place):
            place.mkdir(parents=True, exist_ok=True)
    return [
        *(Mount(str(place), str(place), type="bind") for place in writable),
        *(Mount(str(place), str(place), type="bind", read_only=True) for place in _inputs(config)),
    ]


def _inputs(config: StudyConfig) -> list[Path]:
    """Files and folders of this machine that the study reads."""
    dataset, evaluation = config.dataset, config.evaluation
    named: list[str | Path | None] = [evaluation.extractor_weights]
    if isinstance(dataset.source, FolderSource | TarSource) and "://" not in dataset.source.path:
        path = Path(dataset.source.path)
        # For a pattern, mount the folder that it starts from.
        named.append(next(folder for folder in (path, *path.parents) if not has_magic(str(folder))))
    if isinstance(dataset.codec, VaeCodec):
        named += [dataset.codec.weights, dataset.codec.decoder]
    if isinstance(evaluation.reference, AdmReference):
        named.append(evaluation.reference.path)
    places = {Path(os.path.expanduser(name)).absolute() for name in named if name and "://" not in str(name)}
    return sorted(place for place in places if place.exists())


def _gpus() -> dict[str, Any]:
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return {}
    from docker.types import DeviceRequest

    return {"device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])]}
