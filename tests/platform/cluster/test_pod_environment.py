"""Services inside a cluster, reached through a kubectl that forwards as the real one does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from http_fakes import serve

from dit.errors import DitError, InputError
from pipelines.cluster.pod_environment import reached

# Says where it listens, and stays until it is ended, as `kubectl port-forward` does; here it only says so.
KUBECTL = """#!{python}
import os, sys, time
from pathlib import Path
Path({log!r}).write_text(f"{{os.getpid()}} " + " ".join(sys.argv[1:]))
if {error!r}:
    sys.exit({error!r})
print("Forwarding from 127.0.0.1:{port} -> 7070", flush=True)
time.sleep(600)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def kubectl(folder: Path, log: Path, monkeypatch: pytest.MonkeyPatch, port: str = "0", error: str = "") -> None:
    path = folder / "kubectl"
    path.write_text(KUBECTL.format(python=sys.executable, log=str(log), port=port, error=error))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("http://s3.store.svc.cluster.local:7070", "-n store service/s3 :7070"),
        ("http://s3.store.svc:7070", "-n store service/s3 :7070"),
        ("http://no-such-host-of-ours:7070", "-n jobs service/no-such-host-of-ours :7070"),
        ("http://s3.store.svc", "-n store service/s3 :80"),
    ],
)
def test_a_name_of_the_cluster_is_reached_through_kubectl(
    address: str, place: str, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(lambda _: (200, "behind the service")) as real:
        kubectl(tmp_path, log, monkeypatch, port=real.rpartition(":")[2])
        with reached(address, "jobs") as local, urlopen(local) as answer:
            assert answer.read() == b"behind the service"
        number, _, arguments = log.read_text().partition(" ")
    assert arguments.startswith("port-forward") and arguments.endswith(place)  # noqa: PT018
    with pytest.raises(ProcessLookupError):
        os.kill(int(number), 0)


def test_what_this_machine_can_look_up_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for address in ("http://localhost:9000", "https://127.0.0.1:9000/path"):
        with reached(address, "jobs") as local:
            assert local == address


def test_a_host_outside_that_has_no_address_is_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with reached("https://s3.nothing.invalid", "jobs") as local:
        assert local == "https://s3.nothing.invalid"


def test_a_service_that_is_not_there_is_one_line(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl(tmp_path, log, monkeypatch, error='error: services "s3" not found')
    with pytest.raises(DitError, match=r'service store/s3 cannot be reached: services "s3" not found; kubectl get'):
        reached("http://s3.store.svc:7070", "jobs").__enter__()


def test_encryption_for_a_name_of_the_cluster_cannot_be_checked_from_outside() -> None:
    with pytest.raises(InputError, match="certificate"):
        reached("https://s3.store.svc:7070", "jobs").__enter__()


def test_without_kubectl_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="kubectl is not on PATH"):
        reached("http://s3.store.svc:7070", "jobs").__enter__()
