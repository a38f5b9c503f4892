"""The cluster under test, deployed by `make test-cluster`: its store, its image, and access to the node."""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Iterator

import pytest
from hand import Hand
from kube import (
    NAMESPACE,
    SELECTOR,
    SERVICES,
    SESSION,
    Object,
    Refused,
    apply,
    delete,
    find,
    forwarded,
    get,
    has_crd,
    kubectl,
    until,
)
from studies import CONFIG_MAP, EARLY, EARLY_LABEL, Running, Site, study_config_map
from unrecoverable import launched

from dit.errors import DitError
from pipelines.deploy import ROOT
from pipelines.jobs import names

ALONE_LOCK = "ALONE_LOCK"
"""Variable with the descriptor of a lock, held while tests marked `alone` run."""
JOBS = ("pytorchjobs.kubeflow.org", "trainjobs.trainer.kubeflow.org")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests marked `alone` first, so that other suites can run in parallel with the rest."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Iterator[None]:
    """Release the lock after the last test marked `alone` and its cleanup."""
    yield
    if (nextitem is None or nextitem.get_closest_marker("alone") is None) and ALONE_LOCK in os.environ:
        fcntl.flock(int(os.environ.pop(ALONE_LOCK)), fcntl.LOCK_UN)


@pytest.fixture(scope="session")
def image() -> str:
    """The stages' image, by digest."""
    file = ROOT / "build" / "image.digest"
    if not file.is_file():
        pytest.exit(f"{file} does not exist: make build push REGISTRY=...", returncode=2)
    return file.read_text().strip()


@pytest.fixture(scope="session")
def site(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Overlay kind, with a folder in its store that is deleted at the end."""
    try:
        deployed = get("deployment", "s3", SERVICES) and get("secret", "dit-s3")
    except Refused as error:
        pytest.exit(f"no cluster answers ({error}); set KUBECONFIG", returncode=2)
    if not deployed:
        pytest.exit("overlay kind is not deployed; type: make test-cluster", returncode=2)
    apply(study_config_map())
    root = f"s3://dit-scaling/test-{SESSION}"
    with forwarded("s3", 7070) as s3, forwarded("mlflow", 5000) as mlflow, pytest.MonkeyPatch.context() as patch:
        for secret in ("dit-s3", "dit-mlflow"):
            for key, value in (get("secret", secret) or {})["data"].items():
                patch.setenv(key, base64.b64decode(value).decode())
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{s3}")
        site = Site(image, root, f"http://{mlflow}", tmp_path_factory.mktemp("reference"))
        until("the store answers", lambda: _answers(site), 60)
        yield site
        site.store.delete("datasets")
        site.store.delete("studies")
        delete("configmap", CONFIG_MAP)


def _answers(site: Site) -> bool:
    try:
        return site.store is not None
    except DitError:  # the port is not forwarded yet
        return False


@pytest.fixture(scope="session")
def dataset(site: Site) -> None:
    """The digits as shards in the store, made by a pod."""
    site.study("digits").run("prepare")


@pytest.fixture(scope="session")
def hand(image: str) -> Iterator[Hand]:
    """A pod that can kill processes on the node."""
    with Hand.on_node(image) as hand:
        yield hand


@pytest.fixture(scope="session")
def cannot_start(site: Site) -> Iterator[dict[str, Running]]:
    """Launchers of jobs that cannot start."""
    with launched(site) as launchers:
        yield launchers
        _clean(early=True)


@pytest.fixture(scope="session", autouse=True)
def _what_waits_begins(request: pytest.FixtureRequest) -> None:
    """Start these launchers first: their timeouts run in parallel with the other tests."""
    if any("cannot_start" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("cannot_start")


@pytest.fixture(scope="module", autouse=True)
def _nothing_left(site: Site) -> Iterator[None]:
    """Delete the jobs and pods of a module, also after failed tests."""
    assert site.store
    yield
    _clean()


def _clean(*, early: bool = False) -> None:
    selector = f"{SELECTOR},{'' if early else '!'}{EARLY_LABEL}"
    kubectl("delete", "pods", "-n", NAMESPACE, "-l", selector, "--grace-period=1")
    for kind in filter(has_crd, JOBS):
        for job in _of_tests(kind, early):
            delete(kind, job["metadata"]["name"])
    until("all pods of jobs are gone", lambda: not _of_tests("pods", early), 90)


def _of_tests(kind: str, early: bool) -> list[Object]:
    studies = ((entry, entry["metadata"]["labels"][names.STUDY]) for entry in find(kind, names.STUDY))
    ours = [(entry, study) for entry, study in studies if study.endswith(SESSION)]
    return [entry for entry, study in ours if study.startswith(f"{EARLY}-") is early]
