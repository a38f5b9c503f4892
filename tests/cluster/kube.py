"""A cluster as kubectl shows it: ask, apply, wait, forward a port."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import yaml
from ports import reserved_port

from dit.errors import StoreError

NAMESPACE = "dit-scaling"
SESSION = f"t{uuid.uuid4().hex[:5]}"
"""Part of the names of all that these tests make: others may work on the same cluster. YAML must not read a number."""
OURS = {"dit-scaling/test": SESSION}
"""Label of what they make, besides jobs."""
SELECTOR = f"dit-scaling/test={SESSION}"
Object = dict[str, Any]
T = TypeVar("T")


class Refused(Exception):
    """kubectl failed; the text is what it wrote."""


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """What kubectl prints; Refused when it fails."""
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr.strip())
    return done.stdout


def apply(*manifests: Object) -> None:
    """Create or change objects."""
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump_all(manifests))


def get(kind: str, name: str, namespace: str = NAMESPACE) -> Object | None:
    """An object, None where there is none."""
    text = kubectl("get", kind, name, "-n", namespace, "--ignore-not-found", "-o", "json")
    return json.loads(text) if text else None


def find(kind: str, selector: str = "", namespace: str = NAMESPACE) -> list[Object]:
    """Objects with these labels."""
    return json.loads(kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "json"))["items"]


def delete(kind: str, name: str, namespace: str = NAMESPACE, *, wait: bool = True) -> None:
    """Delete an object at once, and wait until it is gone; nothing where it is gone already."""
    kubectl("delete", kind, name, "-n", namespace, "--ignore-not-found", "--grace-period=1", f"--wait={wait}".lower())


def has_crd(name: str) -> bool:
    """Whether the cluster knows a kind."""
    return bool(kubectl("get", "crd", name, "--ignore-not-found", "-o", "name"))


def until(what: str, look: Callable[[], T], seconds: float, pause: float = 1.0) -> T:
    """The first true thing that `look` returns; servers that are away for a moment are asked again."""
    end = time.monotonic() + seconds
    trouble = ""
    while True:
        try:
            if found := look():
                return found
        except (Refused, StoreError) as error:
            trouble = f" ({error})"
        if time.monotonic() > end:
            break
        time.sleep(pause)
    raise AssertionError(f"not within {seconds:g} s: {what}{trouble}")


@contextmanager
def forwarded(service: str, port: int) -> Iterator[str]:
    """`host:port` of this machine that leads to a service, also after its pod was replaced."""
    closing = threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def keep(command: list[str]) -> None:
        while not closing.is_set():
            running[:] = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
            running[0].wait()
            closing.wait(1.0)

    with reserved_port() as local:
        command = ["kubectl", "port-forward", "-n", NAMESPACE, f"service/{service}", f"{local}:{port}"]
        keeper = threading.Thread(target=keep, args=(command,), daemon=True)
        keeper.start()
        try:
            yield f"127.0.0.1:{local}"
        finally:
            closing.set()
            for process in running:
                process.terminate()
            keeper.join(10.0)
