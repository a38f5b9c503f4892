"""Services of a cluster, reached through a fake kubectl that forwards ports."""

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
def test_a_service_name_is_reached_through_port_forward(
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


def test_what_is_no_service_of_the_cluster_is_not_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for address in ("http://localhost:9000", "https://127.0.0.1:9000/path", "https://s3.nothing.invalid"):
        with reached(address, "jobs") as local:
            assert local == address


def test_a_missing_service_is_a_one_line_error(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl(tmp_path, log, monkeypatch, error='error: services "s3" not found')
    with pytest.raises(DitError, match=r'service store/s3 cannot be reached: services "s3" not found; kubectl get'):
        reached("http://s3.store.svc:7070", "jobs").__enter__()


def test_https_of_a_service_name_is_refused() -> None:
    with pytest.raises(InputError, match="certificate"):
        reached("https://s3.store.svc:7070", "jobs").__enter__()


def test_a_missing_kubectl_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="kubectl is not on PATH"):
        reached("http://s3.store.svc:7070", "jobs").__enter__()
