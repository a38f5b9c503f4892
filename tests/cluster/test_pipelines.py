"""The digits study on Kubeflow Pipelines, with the commands of a user: `make test-pipelines`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kube import NAMESPACE, Refused, find, get, kubectl, until
from rights import ACCOUNTS, documented, granted
from studies import STUDY_FILE, Site, Study
from workflows import pipelines_namespace

from dit.study import layout
from pipelines.deploy import ROOT
from pipelines.jobs import names
from pipelines.jobs.names import KFP_RUN
from pipelines.runs.api import Pipelines
from pipelines.runs.model import SUCCEEDED, Run
from pipelines.runs.steps import NODE, failures, steps, title_of
from pipelines.submit import reasons

PYTORCHJOB = "pytorchjobs.kubeflow.org"
RUN_SECONDS = 900
REAPED_SECONDS = 15
SMALL = (
    "variants=[mini-S/2]",
    "train.steps=60",
    "evaluation.at_steps=[60]",
    "evaluation.resamples=40",
    "sampling.num_samples=80",
    "sampling.steps=5",
    "cluster.replicas=1",
    "cluster.steps.retries=0",
    "cluster.steps.parts=1",
)
WHOLE = ("cluster.replicas=2", "cluster.steps.parts=2", f"dataset.name=digits-in-parts-{os.getpid()}")
SHORT = ("train.steps=20", "evaluation.at_steps=[20]")
# Without the check of the recipe, which would refuse it before the first step.
DIVERGES = ("train.learning_rate=1e30", "health.recipe=off")
ENDLESS = ("train.steps=100000", "evaluation.at_steps=[100000]", "fit.checkpoint_every=100")
FIVE = (
    "variants=[mini-S/2, mini-S/4, mini-B/4, mini-B/8, mini-S/8]",
    "cluster.steps.parts=2",
    "cluster.steps.variants_at_a_time=3",
)
TWELVE = (
    f"variants=[{', '.join(f'mini-{size}/{patch}' for size in ('S', 'B', 'L', 'XL') for patch in (2, 4, 8))}]",
    "cluster.steps.parts=2",
    "cluster.steps.variants_at_a_time=3",
)
# `merge` alone has the study's text, a dozen times.
LARGE = f"description={'of many words ' * 6500}"
# The preparation is the same in every run of one session, and in none of another.
DATASET = f"dataset.name=digits-{os.getpid()}"
pytestmark = [pytest.mark.pipelines, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Submitter:
    """Commands of a user, and the server that they use."""

    site: Site
    server: Pipelines
    experiment: str

    def study(self, name: str, *overrides: str) -> Study:
        return self.site.study(name, *SMALL, DATASET, *overrides)

    def command(self, study: Study, *arguments: str) -> list[str]:
        sets = [word for override in study.overrides for word in ("--set", override)]
        return [sys.executable, "-m", "dit", *arguments, str(STUDY_FILE), "--root", self.site.root, *sets]

    def submit(self, study: Study, *options: str) -> subprocess.Popen[str]:
        named = ("--image", self.site.image, "--experiment", self.experiment, "--run", study.config.study)
        command = [*self.command(study, "submit"), *named, *options]
        return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def submitted(self, study: Study, *options: str) -> Run:
        """Submit without waiting; returns the run."""
        process = self.submit(study, *options)
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
        return self.run(study)

    def run(self, study: Study) -> Run:
        experiment = self.server.experiment(self.experiment)
        assert experiment is not None
        run = self.server.latest(experiment, f"dit-{study.config.study}", self.site.root)
        assert run is not None
        return run

    def by_kfp(self, verb: str, package: Path, length: int) -> None:
        """`kfp run create`, or the old name `submit`, with another number of steps."""
        kfp = [str(Path(sys.executable).parent / "kfp"), "--endpoint", os.environ["KFP_ENDPOINT"]]
        arguments = ["-e", self.experiment, "-r", f"by-{verb}", "-f", str(package), f"steps={length}"]
        subprocess.run([*kfp, "run", verb, *arguments], check=True, capture_output=True, text=True)

    def ended(self, run: Run) -> Run:
        """Wait until the run has ended, and return it."""

        def look() -> Run | None:
            now = self.server.run(run.uid)
            return now if now.over else None

        return until(f"run {run.name} ends", look, RUN_SECONDS, pause=2.0)


@pytest.fixture(scope="module")
def submitter(site: Site) -> Iterator[Submitter]:
    with pipelines_namespace():
        yield Submitter(site, Pipelines(os.environ["KFP_ENDPOINT"]), f"test-{site.root.rpartition('-')[2]}")


@dataclass(frozen=True)
class UnderWay:
    """Runs in parallel; each test waits for one of them."""

    whole: Study
    whole_submission: subprocess.Popen[str]
    failing: Study
    failing_submission: subprocess.Popen[str]
    endless: Study
    endless_run: Run
    changed: Study
    package: Path
    """The compiled pipeline of `changed`."""


@pytest.fixture(scope="module")
def under_way(submitter: Submitter, tmp_path_factory: pytest.TempPathFactory) -> UnderWay:
    whole = submitter.study("whole", *WHOLE)
    failing = submitter.study("failing", *DIVERGES, *SHORT)
    endless = submitter.study("endless", *ENDLESS)
    changed, package = submitter.study("changed", *SHORT), tmp_path_factory.mktemp("kfp") / "dit.yaml"
    submissions = [submitter.submit(study, "--wait") for study in (whole, failing)]
    endless_run = submitter.submitted(endless)
    command = submitter.command(changed, "compile")
    subprocess.run([*command, "--image", submitter.site.image, "--output", package], cwd=ROOT, check=True)
    submitter.by_kfp("create", package, 20)
    return UnderWay(whole, submissions[0], failing, submissions[1], endless, endless_run, changed, package)


@dataclass(frozen=True)
class Later:
    """Runs in parallel, after the first ones: all together would need too many GPUs."""

    changed_run: Run
    """Run of `UnderWay.changed` with another number of steps."""
    five: Study
    five_submission: subprocess.Popen[str]
    large: Study
    large_submission: subprocess.Popen[str]


@pytest.fixture(scope="module")
def later(submitter: Submitter, under_way: UnderWay) -> Later:
    changed = under_way.changed
    check_succeeded(submitter, changed, submitter.run(changed), 20)
    submitter.by_kfp("submit", under_way.package, 40)
    five = submitter.study("five", *SHORT, *FIVE)
    large = submitter.study("large", *DIVERGES, *SHORT, LARGE)
    submissions = [submitter.submit(study, "--wait") for study in (five, large)]
    return Later(submitter.run(changed), five, submissions[0], large, submissions[1])


def states(run: Run) -> dict[str, str]:
    return {step.name: step.state for step in steps(run)}


def worked_on(run: Run) -> set[str]:
    """Steps that had a pod; cached steps have none."""
    pods = find("pods", f"{KFP_RUN}={run.uid}", "kubeflow")
    own = [pod for pod in pods if ".executor" in pod["metadata"]["annotations"][NODE]]
    return {title for pod in own if (title := title_of(run, pod))}


def test_status_shows_a_running_run(submitter: Submitter, under_way: UnderWay) -> None:
    study = under_way.whole
    until("its training is a job", lambda: study.workers(), 600)
    command = [*submitter.command(study, "status"), "--experiment", submitter.experiment]
    shown = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout
    line = next(line for line in shown.splitlines() if line.startswith("train mini-S/2"))
    assert "PyTorchJob" in line
    assert "/60" in line


def test_a_run_that_is_terminated_leaves_no_job_while_another_goes_on(
    submitter: Submitter, under_way: UnderWay
) -> None:
    ended = under_way.endless
    ended.past(100, seconds=600)
    assert not submitter.run(under_way.whole).over
    terminate = [sys.executable, "-m", "dit", "terminate", under_way.endless_run.uid]
    subprocess.run(terminate, cwd=ROOT, check=True, capture_output=True)

    def gone() -> bool:
        return get(PYTORCHJOB, ended.job()) is None and not find("pods", f"{names.JOB}={ended.job()}")

    until("job and pods of the terminated run are gone", gone, REAPED_SECONDS, pause=0.5)
    assert submitter.ended(under_way.endless_run).state in ("CANCELED", "FAILED")


def test_a_study_is_submitted_and_succeeds(submitter: Submitter, under_way: UnderWay) -> None:
    study = under_way.whole
    output, _ = under_way.whole_submission.communicate(timeout=RUN_SECONDS)
    assert under_way.whole_submission.returncode == 0, output
    run = submitter.run(study)
    assert run.uid in output
    assert run.state == SUCCEEDED
    assert set(states(run).values()) == {SUCCEEDED}, states(run)
    study.check_losses()
    assert b"mini-S/2" in study.site.store.read(f"{layout.report(study.config)}/{layout.REPORT_PAGE}")


def test_steps_are_restricted_and_only_those_that_start_jobs_may_start_jobs(
    submitter: Submitter, under_way: UnderWay
) -> None:
    run = submitter.ended(submitter.run(under_way.whole))
    pods = [
        pod
        for pod in find("pods", f"{KFP_RUN}={run.uid}", "kubeflow")
        if ".executor" in pod["metadata"]["annotations"][NODE]
    ]
    assert pods
    launching = set()
    for pod in pods:
        spec, name = pod["spec"], title_of(run, pod)
        assert spec["serviceAccountName"] == names.STEP
        (main,) = (container for container in spec["containers"] if container["name"] == "main")
        context = {**spec.get("securityContext", {}), **main["securityContext"]}
        assert context["runAsNonRoot"] is True, name
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        secrets = {volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}
        launching |= {name} if names.LAUNCHER_TOKEN in secrets else set()
    assert launching == {"train mini-S/2", "sample mini-S/2"}


def test_the_account_of_steps_has_the_documented_permissions_and_none_for_jobs(submitter: Submitter) -> None:  # noqa: ARG001
    rows = {account: permissions for namespace, account, permissions in ACCOUNTS if namespace == "kubeflow"}
    assert rows.keys() == {names.STEP, names.LAUNCHER}
    for account, permissions in rows.items():
        assert granted("kubeflow", account) == documented(permissions)
    asked = ("auth", "can-i", "create", PYTORCHJOB, "-n", NAMESPACE)
    assert kubectl(*asked, "--as", f"system:serviceaccount:kubeflow:{names.LAUNCHER}").strip() == "yes"
    with pytest.raises(Refused):
        kubectl(*asked, "--as", f"system:serviceaccount:kubeflow:{names.STEP}")


def test_a_failed_step_has_a_reason(submitter: Submitter, under_way: UnderWay) -> None:
    study = under_way.failing
    output, _ = under_way.failing_submission.communicate(timeout=RUN_SECONDS)
    assert under_way.failing_submission.returncode != 0
    run = submitter.run(study)
    assert run.state == "FAILED"
    assert [step.name for step in failures(run)] == ["train mini-S/2"]
    (line,) = [line for line in output.splitlines() if line.startswith("train mini-S/2: ") and "not finite" in line]
    assert f"pod {study.job()}-worker-" in line
    assert "rank" in line
    # The pipelines' own page reads it from the workflow.
    (workflow,) = find("workflows.argoproj.io", f"pipeline/runid={run.uid}", "kubeflow")
    messages = [node.get("message", "") for node in workflow["status"]["nodes"].values() if node["type"] == "Pod"]
    assert any("not finite" in message for message in messages), messages


def test_kfp_submits_with_other_parameters_and_reuses_the_preparation(
    submitter: Submitter, under_way: UnderWay, later: Later
) -> None:
    worked = worked_on(check_succeeded(submitter, under_way.changed, later.changed_run, 40))
    assert not [title for title in worked if title.startswith("prepare")]
    assert {"merge", "train mini-S/2", "report"} < worked


def check_succeeded(submitter: Submitter, study: Study, run: Run, length: int) -> Run:
    run = submitter.ended(run)
    assert run.state == SUCCEEDED, (states(run), reasons(run, [step.name for step in failures(run)], "kubeflow"))
    assert study.record().steps == length
    return run


def test_the_server_has_the_right_states_of_a_run_of_five_variants(submitter: Submitter, later: Later) -> None:
    check_states(submitter, later.five, later.five_submission, 19)


def test_the_server_has_the_right_states_of_a_run_of_twelve_variants(submitter: Submitter) -> None:
    twelve = submitter.study("twelve", *SHORT, *TWELVE)
    check_states(submitter, twelve, submitter.submit(twelve, "--wait"), 16)


def check_states(submitter: Submitter, study: Study, submission: subprocess.Popen[str], count: int) -> None:
    """Check the states of each step and of what steps are made of: Argo compresses the status of a workflow from
    1 MiB on, and the server reads none of that."""
    output, _ = submission.communicate(timeout=1700)
    assert submission.returncode == 0, output
    run = submitter.run(study)
    assert len(steps(run)) == count
    assert set(states(run).values()) == {SUCCEEDED}, states(run)
    assert {task.state for task in run.tasks if task.name} == {SUCCEEDED}, run.tasks
    (workflow,) = find("workflows.argoproj.io", f"{names.KFP_RUN}={run.uid}", "kubeflow")
    assert "compressedNodes" not in workflow["status"]


def test_a_failed_step_of_a_run_too_large_for_the_pipelines_server_has_a_reason(
    submitter: Submitter, later: Later
) -> None:
    output, _ = later.large_submission.communicate(timeout=RUN_SECONDS)
    assert later.large_submission.returncode != 0
    (workflow,) = find("workflows.argoproj.io", f"{KFP_RUN}={submitter.run(later.large).uid}", "kubeflow")
    assert "compressedNodes" in workflow["status"], "the run is not large"
    lines = output.splitlines()
    assert "merge: succeeded" in lines, output
    assert "train mini-S/2: failed" in lines, output
    assert [line for line in lines if line.startswith("train mini-S/2: ") and "not finite" in line], output
    assert "ended FAILED at train mini-S/2" in lines[-1]
