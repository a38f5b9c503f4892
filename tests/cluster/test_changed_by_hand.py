"""Manual changes of deployed objects are named, and overwritten only with --force."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from kube import NAMESPACE, get, kubectl
from studies import Site

from pipelines.deploy import ROOT

MAP, KEY = "dit-services", "MLFLOW_TRACKING_URI"
pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(600)]


def deploy(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dit", "deploy", "kind", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def value() -> str:
    result = get("configmap", MAP)
    assert result is not None
    return str(result["data"][KEY])


@pytest.fixture
def changed(site: Site) -> Iterator[str]:
    """Change a setting; yields its previous value."""
    assert site.store
    before = value()
    patch = f'{{"data": {{"{KEY}": "http://elsewhere:5000"}}}}'
    kubectl("patch", "configmap", MAP, "-n", NAMESPACE, "--field-manager=somebody", "--type=merge", "-p", patch)
    yield before
    deploy("--force")


def test_a_manual_change_is_named_and_overwritten_with_force(changed: str) -> None:
    refused = deploy()
    assert refused.returncode
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("dit: ")]
    assert 'conflict with "somebody"' in line
    assert f".data.{KEY}" in line
    assert "add --force" in line
    assert value() != changed
    done = deploy("--force")
    assert done.returncode == 0, done.stderr
    assert value() == changed
    assert deploy().returncode == 0
