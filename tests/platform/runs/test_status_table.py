"""How far a study is, read from its store, and its table: what run, jobs and store say about each step."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from study_records import checkpoint_meta, fill, train_record

from dit.results.progress import StageProgress, progress
from dit.results.stages import Work, step_names
from dit.storage import Store, open_store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.study_file import load
from dit.tracking.journal import Entry
from pipelines.jobs.kind import Phase
from pipelines.jobs.snapshot import Snapshot
from pipelines.runs.model import Run, Task
from pipelines.runs.status_table import COLUMNS, JobView, rows, under_way
from pipelines.runs.steps import last_death, reason_in, steps, waiting

CONFIGS = Path(__file__).parents[3] / "configs"
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
TRAIN, EVALUATE = "train mini-S/2", "evaluate mini-S/2"


@pytest.fixture
def config() -> StudyConfig:
    return load(CONFIGS / "digits.yaml", ["variants=[mini-S/2, mini-B/2]"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def stage(config: StudyConfig, store: Store, name: str) -> StageProgress:
    return next(one for one in progress(Work(config, store)) if one.name == name)


def write_losses(config: StudyConfig, store: Store, *losses: tuple[int, float]) -> None:
    lines = [Entry("run", {"id": "r", "name": "n", "hash": "h", "tags": {}}).to_line()]
    lines += [Entry("metrics", {"loss": value, "grad_norm": 1.0}, step).to_line() for step, value in losses]
    store.write(layout.journal(config, config.specs[0]), b"".join(lines))


def test_a_study_that_has_not_begun_has_every_stage_before_it(config: StudyConfig, store: Store) -> None:
    found = progress(Work(config, store))
    assert [one.name for one in found] == step_names(config)
    assert [one.name for one in found if one.complete] == []


def test_training_under_way_is_as_far_as_its_newest_loss_or_checkpoint(config: StudyConfig, store: Store) -> None:
    write_losses(config, store, (20, 0.9), (60, 0.5), (40, 0.7))
    found = stage(config, store, TRAIN)
    assert (found.done, found.total) == (60, 1500)
    assert found.last is not None
    assert (found.last.name, found.last.step, found.last.value) == ("loss", 60, 0.5)
    meta = checkpoint_meta(config, config.specs[0], 200)
    write_record(store, f"{layout.checkpoint(config, config.specs[0], 200)}/{layout.META}", meta)
    store.write(f"{layout.checkpoint(config, config.specs[0], 400)}/model.safetensors", b"still being written")
    assert stage(config, store, TRAIN).done == 200


def test_training_is_complete_when_its_record_and_checkpoints_say_so(config: StudyConfig, store: Store) -> None:
    spec = config.specs[0]
    write_losses(config, store, (1500, 0.5))
    assert not stage(config, store, TRAIN).complete
    fill(store, config)
    found = stage(config, store, TRAIN)
    assert found.complete
    assert found.seconds == train_record(config, spec).train_seconds
    longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": 3000})})
    assert not stage(longer, store, TRAIN).complete


def test_the_newest_metrics_are_shown(config: StudyConfig, store: Store) -> None:
    fill(store, config)
    store.delete(layout.metrics(config, config.specs[0], 1500))
    found = stage(config, store, EVALUATE)
    assert (found.done, found.total) == (2, 3)
    assert found.last is not None
    assert (found.last.name, found.last.step) == ("fd_digits", 1000)


TITLES = {
    "merge": "merge",
    "prepare-part": "prepare 1/2",
    "prepare-part-10": "prepare 10/2",
    "prepare-part-2": "prepare 2/2",
    "report": "report",
    "train": TRAIN,
    "train-2": "train mini-B/2",
}


def run(state: str = "RUNNING", **states: str) -> Run:
    began = NOW - timedelta(minutes=3)
    tasks = tuple(Task(name.replace("_", "-"), one, began) for name, one in states.items())
    return Run("r", "r", state, tasks=tasks, titles=TITLES)


def job(phase: Phase, running: int) -> JobView:
    pods = tuple({"status": {"phase": "Running"}} for _ in range(running))
    return JobView(TRAIN, "PyTorchJob", Snapshot({"metadata": {}}, phase, pods), 8)


def table(config: StudyConfig, *arguments: Any) -> dict[str, dict[str, str | None]]:
    found = rows(step_names(config), *arguments, NOW)
    return {str(row[0]): dict(zip(COLUMNS, row, strict=True)) for row in found}


def test_a_row_joins_what_run_job_and_store_say(config: StudyConfig, store: Store) -> None:
    write_losses(config, store, (60, 0.5))
    states = {"prepare_part": "SUCCEEDED", "train": "RUNNING"}
    found = table(config, progress(Work(config, store)), [job(Phase.RUNNING, 7)], run(**states))
    row = found[TRAIN]
    assert row["state"] == "running"
    assert row["job"] == "PyTorchJob running"
    assert row["pods"] == "7/8"
    assert str(row["done"]).startswith("60/1,500 steps")
    assert row["newest"] == "loss 0.5000 at 60"
    assert row["time"] == "3m 00s"
    assert found["prepare 1/2"]["state"] == "succeeded"
    assert found["train mini-B/2"]["state"] is None


def test_steps_stand_in_the_order_of_the_study(config: StudyConfig, store: Store) -> None:
    found = list(table(config, progress(Work(config, store)), [], run()))
    assert found == ["prepare 1/2", "prepare 2/2", "prepare 10/2", "merge", TRAIN, "train mini-B/2", "report"]


def test_without_a_run_the_store_and_the_jobs_are_shown(config: StudyConfig, store: Store) -> None:
    fill(store, config)
    found = table(config, progress(Work(config, store)), [job(Phase.SUCCEEDED, 0)], None)
    assert list(found) == step_names(config)
    assert found[TRAIN]["state"] == "complete"
    assert (found[TRAIN]["job"], found[TRAIN]["pods"]) == ("PyTorchJob succeeded", None)


def test_without_a_store_the_run_is_shown(config: StudyConfig) -> None:
    found = table(config, [], [], run(train="RUNNING"))
    assert found[TRAIN]["state"] == "running"
    assert found[TRAIN]["done"] is None


def test_what_there_is_to_wait_for() -> None:
    done, open_ = StageProgress("report", 1, 1, "reports"), StageProgress("report", 0, 1, "reports")
    assert under_way([done], [], run("RUNNING"))
    assert not under_way([open_], [job(Phase.RUNNING, 8)], run("FAILED"))
    assert under_way([open_], [job(Phase.RUNNING, 8)], None)
    assert not under_way([open_], [job(Phase.FAILED, 0)], None)
    assert not under_way([done], [], None)


def test_a_driver_stands_for_its_step_until_that_begins() -> None:
    found = {step.name: step.state for step in steps(run(train_driver="FAILED", train_2="RUNNING", merge="SUCCEEDED"))}
    assert found[TRAIN] == "FAILED"
    assert found["train mini-B/2"] == "RUNNING"
    assert found["report"] == ""
    assert {step.name: step.state for step in steps(run(train_driver="SUCCEEDED"))}[TRAIN] == ""


def pod(task: str, phase: str, name: str = "p", **status: Any) -> dict[str, Any]:
    node = {"workflows.argoproj.io/node-name": f"w(0).root(0).{task}"}
    metadata = {"name": name, "namespace": "kubeflow", "annotations": node, "creationTimestamp": f"2026-01-01T{name}"}
    return {"metadata": metadata, "status": {"phase": phase, **status}}


def test_pods_that_do_not_run_say_why() -> None:
    unscheduled = [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]
    pulling = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    starting = {"waiting": {"reason": "ContainerCreating"}}
    found = waiting(
        run(),
        [
            pod("train(0).executor(0)", "Pending", "a", conditions=unscheduled),
            pod("train-2-driver(0)", "Pending", "b", containerStatuses=[{"name": "main", "state": pulling}]),
            pod("report(0).executor(0)", "Pending", "c", containerStatuses=[{"name": "main", "state": starting}]),
            pod("merge(0).executor(0)", "Running", "d"),
        ],
    )
    assert found == {
        TRAIN: "pod kubeflow/a finds no node: 0/3 nodes are available; it waits for room: kubectl describe nodes",
        "train mini-B/2": "pod kubeflow/b cannot pull its image: no such image; push the image, or correct its name or"
        " pull secret (docs/cluster.md, Private registries)",
    }


def test_the_newest_pod_that_failed_tells_why() -> None:
    def dead(name: str, **ended: str) -> dict[str, Any]:
        status = [{"name": "wait", "state": {"terminated": {"reason": "Completed"}}}]
        status += [{"name": "main", "state": {"terminated": ended}}]
        return pod("train(1).executor(0)", "Failed", name, containerStatuses=status)

    pods = [
        dead("02", reason="Error", message="the second\ntry"),
        dead("01", reason="OOMKilled"),
        pod("train", "Running"),
    ]
    assert last_death(run(), TRAIN, pods) == ("02", "the second try")
    assert last_death(run(), TRAIN, pods[1:]) == ("01", "OOMKilled")
    assert last_death(run(), TRAIN, [dead("03", reason="Error")]) == ("03", "")
    assert last_death(run(), "report", pods) is None
    evicted = pod("train(0).executor(0)", "Failed", "04", reason="Evicted", message="The node was low on memory")
    assert last_death(run(), TRAIN, [evicted]) == ("04", "The node was low on memory")


def test_a_step_tells_why_it_fails_in_a_line_of_its_own() -> None:
    assert reason_in("dit: first\nx\ndit: second\nlauncher: exit status 1\n") == "second"
    around = [
        "I1125 07:44:26.019770 15 launcher_v2.go:206] publish",
        'time=2026-11-25T07:44:26Z msg="x"',
        "Error: exit status 1",
    ]
    assert reason_in("\n".join(["Traceback", "ImportError: no name", "", *around])) == "ImportError: no name"
    assert reason_in("\n".join(around)) == ""
