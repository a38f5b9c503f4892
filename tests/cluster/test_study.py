"""Scenario 1: the digits study, all its steps in pods, with the losses of the same study in one process."""

from __future__ import annotations

import json

import pytest
from kube import find
from studies import Running, Site, Study

from dit.study import layout
from pipelines.jobs import names

VARIANTS = ("mini-S/2", "mini-B/2")
RECIPE = (
    f"variants=[{', '.join(VARIANTS)}]",
    "train.steps=60",
    "evaluation.at_steps=[60]",
    "evaluation.resamples=40",
    "sampling.num_samples=80",
    "sampling.steps=5",
)
pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(1200)]


def _ends_well(launcher: Running) -> None:
    ended = launcher.end(400)
    assert ended.code == 0, ended.log


def test_the_digits_study(site: Site) -> None:
    study = site.study("study", *RECIPE)
    study.run("prepare")
    # Sampling by fewer pods gives the same samples.
    fewer = Study(site, (*study.overrides, "cluster.replicas=2"))
    for variant in VARIANTS:
        launcher = study.launch(variant)
        launcher.says("all 8 pods run", 240)
        pods = find("pods", f"{names.JOB}={study.job(variant)}")
        limits = [pod["spec"]["containers"][0]["resources"]["limits"] for pod in pods]
        assert [limit["nvidia.com/gpu"] for limit in limits] == ["1"] * 8
        _ends_well(launcher)
        _ends_well(fewer.launch(variant, "sample"))
        assert study.record(variant).world_size == 8
        study.check_losses(variant)
    study.run("evaluate")
    study.run("report")
    page = site.store.read(f"{layout.report(study.config)}/{layout.REPORT_PAGE}").decode()
    assert all(variant in page for variant in VARIANTS)
    verdict = json.loads(site.store.read(f"{layout.report(study.config)}/{layout.REPORT_VERDICT}"))
    assert verdict["study"] == study.config.study
    for variant in VARIANTS:
        run = study.mlflow_run(variant)
        assert run.info.status == "FINISHED"
        assert len({key for key in run.data.metrics if key.endswith("/fd_digits")}) == 1
