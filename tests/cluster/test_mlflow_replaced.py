"""MLflow's pod and volume claim are deleted and deployed again during a training: the new server gets every point."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from kube import SERVICES, SESSION, delete, find, kubectl, until
from mlflow import MlflowClient
from studies import Site, Study

from pipelines.deploy import ROOT

ENDLESS = ("train.steps=100000", "evaluation.at_steps=[100000]", "fit.checkpoint_every=20", "cluster.replicas=1")
PYTORCHJOB = "pytorchjobs.kubeflow.org"
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.alone,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("dataset"),
]


def replace_server() -> None:
    kubectl("delete", "deployment", "mlflow", "-n", SERVICES)
    until("its pod is gone", lambda: not find("pods", "app.kubernetes.io/name=mlflow", SERVICES), 120)
    kubectl("delete", "persistentvolumeclaim", "mlflow", "-n", SERVICES)
    subprocess.run([sys.executable, "-m", "dit", "deploy", "kind"], cwd=ROOT, check=True)


def tracked(client: MlflowClient, study: Study) -> Counter[int]:
    """Step -> number of its points on the server, in the study's only run."""
    experiment = client.get_experiment_by_name(study.config.study)
    wanted = "params.variant = 'mini-S/2'"
    runs = client.search_runs([experiment.experiment_id], wanted) if experiment else []
    assert len(runs) <= 1
    return Counter(point.step for run in runs for point in client.get_metric_history(run.info.run_id, "loss"))


def test_a_new_server_gets_all_points_by_name_while_the_training_goes_on(site: Site) -> None:
    study, client = site.study("replaced", *ENDLESS), MlflowClient(site.mlflow)
    study.launch()
    study.past(40)
    until("it is tracked", lambda: tracked(client, study), 60)
    number = int(client.get_experiment_by_name(study.config.study).experiment_id)
    replace_server()
    # Other experiments take the number that the study's experiment had.
    others: list[str] = []
    while max(map(int, others), default=0) < number:
        others.append(client.create_experiment(f"other-{SESSION}-{len(others)}"))
    study.past(study.newest_checkpoint() + 40)
    wanted = {step for step, _ in study.losses()}
    assert {10, 40} < wanted

    def arrived() -> bool:
        counts = tracked(client, study)
        return wanted <= counts.keys() and set(counts.values()) == {1}

    until("every point is in the new server, once", arrived, 180)
    assert not client.search_runs(others)
    delete(PYTORCHJOB, study.job())
    for experiment in others:
        client.delete_experiment(experiment)
