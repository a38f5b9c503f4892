"""The phase of a TrainJob, from its status."""

from __future__ import annotations

from typing import Any

import pytest
from job_objects import condition, spec, trainjob

from pipelines.jobs.kind import Phase
from pipelines.jobs.registry import kind_of


@pytest.mark.parametrize(
    ("manifest", "phase"),
    [
        (trainjob(), Phase.NEW),
        (trainjob(jobsStatus=[{"name": "node", "active": 0}]), Phase.PENDING),
        (trainjob(jobsStatus=[{"name": "node", "active": 1}]), Phase.RUNNING),
        (trainjob(conditions=[condition("Suspended")]), Phase.SUSPENDED),
        (trainjob(conditions=[condition("Complete"), condition("Suspended", status="False")]), Phase.SUCCEEDED),
        (trainjob(conditions=[condition("Failed", reason="FailedJobs")]), Phase.FAILED),
    ],
)
def test_the_phase_of_a_trainjob(manifest: dict[str, Any], phase: Phase) -> None:
    assert kind_of(spec("cluster.job=trainjob")).phase(manifest) is phase
