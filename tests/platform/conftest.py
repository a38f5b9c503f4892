"""Fixtures of the platform's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_fakes import serve
from job_objects import Api
from kubernetes import client as k8s

from pipelines.cluster.client import Cluster
from pipelines.jobs import watch


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def server(api: Api) -> Iterator[str]:
    with serve(api.answer) as address:
        yield address


@pytest.fixture
def cluster(server: str, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    settings = k8s.Configuration(host=server)
    settings.retries = False
    return Cluster(k8s.ApiClient(settings), "dit-scaling")
