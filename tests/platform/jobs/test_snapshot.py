"""Which objects belong to a job."""

from __future__ import annotations

from job_objects import BORN, CREATED

from pipelines.jobs.snapshot import of_this_job


def test_objects_of_an_earlier_job_of_the_same_name_are_ignored() -> None:
    old = {"metadata": {"creationTimestamp": "2026-01-01T09:00:00Z"}}
    new = {"metadata": {"creationTimestamp": BORN}}
    assert of_this_job(CREATED, [old, new], "creationTimestamp") == (new,)
