"""The table of `dit status`: each row joins the run, the job and the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from run_objects import NOW, TRAIN, run

from dit.results.progress import Measured, StageProgress
from dit.results.stages import step_names
from dit.study.study_file import load
from pipelines.jobs.kind import Phase
from pipelines.jobs.snapshot import Snapshot
from pipelines.runs.model import Run, Task
from pipelines.runs.status_table import COLUMNS, JobView, rows, under_way

STEPS = step_names(load(Path(__file__).parents[3] / "configs" / "digits.yaml", ["variants=[mini-S/2, mini-B/2]"]))


def job(phase: Phase, running: int) -> JobView:
    pods = tuple({"status": {"phase": "Running"}} for _ in range(running))
    return JobView(TRAIN, "PyTorchJob", Snapshot({"metadata": {}}, phase, pods), 8)


def table(stages: list[StageProgress], jobs: list[JobView], run: Run | None) -> dict[str, dict[str, str | None]]:
    return {str(row[0]): dict(zip(COLUMNS, row, strict=True)) for row in rows(STEPS, stages, jobs, run, NOW)}


def test_a_row_joins_the_run_the_job_and_the_store() -> None:
    training = StageProgress(TRAIN, 60, 1500, "steps", Measured("loss", 60, 0.5))
    result = table([training], [job(Phase.RUNNING, 7)], run(prepare_part="SUCCEEDED", train="RUNNING"))
    assert result[TRAIN] == {
        "step": TRAIN,
        "state": "running",
        "job": "PyTorchJob running",
        "pods": "7/8",
        "done": "60/1,500 steps (4 %)",
        "newest": "loss 0.5000 at 60",
        "time": "3m 00s",
    }
    assert result["prepare 1/2"]["state"] == "succeeded"
    assert result["train mini-B/2"]["state"] is None


def test_below_the_step_of_a_whole_variant_are_its_stages() -> None:
    titles = {"merge": "merge", "report": "report", "whole": "variant mini-B/2", "whole-2": "variant mini-S/2"}
    stages = [StageProgress(TRAIN, 1500, 1500, "steps"), StageProgress("sample mini-S/2", 1, 3, "sets")]
    result = table(stages, [job(Phase.SUCCEEDED, 0)], replace(run(whole_2="RUNNING"), titles=titles))
    one, other = (
        [f"{stage} {name}" for stage in ("variant", "train", "sample", "evaluate")] for name in ("mini-S/2", "mini-B/2")
    )
    assert list(result) == ["merge", *one, *other, "report"]
    assert [result[name]["state"] for name in one] == ["running", "complete", None, None]
    assert result[TRAIN]["job"] == "PyTorchJob succeeded"
    assert result["sample mini-S/2"]["done"] == "1/3 sets (33 %)"


def test_each_checkpoint_of_a_variant_has_its_row() -> None:
    titles = {"merge": "merge", "report": "report"}
    for variant in ("mini-B/2", "mini-S/2"):
        for stage in ("evaluate", "sample", "train"):
            titles |= {f"{stage}-{variant}-{part}": f"{stage} {variant} {part}/2" for part in (2, 1)}
    states = [Task("train-mini-S/2-1", "SUCCEEDED", NOW), Task("train-mini-S/2-2", "RUNNING", NOW)]
    training = StageProgress(TRAIN, 900, 1500, "steps")
    result = table([training], [job(Phase.RUNNING, 8)], replace(run(), titles=titles, tasks=tuple(states)))
    each = [f"{stage} {{}} {part}/2" for part in (1, 2) for stage in ("train", "sample", "evaluate")]
    order = [name.format(variant) for variant in ("mini-S/2", "mini-B/2") for name in each]
    assert list(result) == ["merge", *order, "report"]
    # One job at a time works on them: it is that of the running step.
    assert [result[f"{TRAIN} {part}/2"]["job"] for part in (1, 2)] == [None, "PyTorchJob running"]
    assert result[f"{TRAIN} 2/2"]["done"] == "900/1,500 steps (60 %)"


def test_each_seed_of_a_variant_has_its_rows() -> None:
    order = step_names(load(Path(__file__).parents[3] / "configs" / "digits.yaml", ["variants=[mini-S/2]", "seeds=2"]))
    own, other = "variant mini-S/2", "variant mini-S/2 seed 1"
    titles = {"b": f"{other} 1/2", "c": f"{other} 2/2", "a": own}
    stages = [
        StageProgress("train mini-S/2 seed 1", 60, 1500, "steps"),
        StageProgress("train mini-S/2", 9, 1500, "steps"),
    ]
    result = {str(row[0]): row for row in rows(order, stages, [], replace(run(), titles=titles), NOW)}
    each = [f"{stage} mini-S/2" for stage in ("train", "sample", "evaluate")]
    assert list(result) == [own, *each, f"{other} 1/2", f"{other} 2/2", *(f"{name} seed 1" for name in each)]
    done = [result[name][COLUMNS.index("done")] for name in ("train mini-S/2", "train mini-S/2 seed 1")]
    assert done == ["9/1,500 steps (0 %)", "60/1,500 steps (4 %)"]


def test_steps_have_the_order_of_the_study() -> None:
    order = ["prepare 1/2", "prepare 2/2", "prepare 10/2", "merge", TRAIN, "train mini-B/2", "report"]
    assert list(table([], [], run())) == order


def test_without_a_run_the_store_and_the_jobs_are_shown() -> None:
    result = table([StageProgress(TRAIN, 1500, 1500, "steps")], [job(Phase.SUCCEEDED, 0)], None)
    assert list(result) == STEPS
    assert result[TRAIN]["state"] == "complete"
    assert (result[TRAIN]["job"], result[TRAIN]["pods"]) == ("PyTorchJob succeeded", None)


def test_without_a_store_the_run_is_shown() -> None:
    result = table([], [], run(train="RUNNING"))
    assert (result[TRAIN]["state"], result[TRAIN]["done"]) == ("running", None)


def test_watching_ends_when_the_run_the_jobs_or_the_stages_have_ended() -> None:
    done, open_ = StageProgress("report", 1, 1, "reports"), StageProgress("report", 0, 1, "reports")
    assert under_way([done], [], run("RUNNING"))
    assert not under_way([open_], [job(Phase.RUNNING, 8)], run("FAILED"))
    assert under_way([open_], [job(Phase.RUNNING, 8)], None)
    assert not under_way([open_], [job(Phase.FAILED, 0)], None)
    assert not under_way([done], [], None)
