"""The study file names the kinds of jobs, and the platform has one for each name."""

from __future__ import annotations

from typing import get_args

from dit.study.cluster import ClusterConfig
from pipelines.jobs.registry import KINDS


def test_a_study_can_choose_every_kind_of_job_and_no_other() -> None:
    assert set(get_args(ClusterConfig.model_fields["job"].annotation)) == set(KINDS)
