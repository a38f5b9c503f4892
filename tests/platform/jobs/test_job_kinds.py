"""The table of job kinds, and their names in study files."""

from __future__ import annotations

from typing import get_args

from dit.study.cluster import ClusterConfig
from pipelines.jobs.registry import KINDS


def test_the_study_file_accepts_exactly_the_registered_job_kinds() -> None:
    assert set(get_args(ClusterConfig.model_fields["job"].annotation)) == set(KINDS)
