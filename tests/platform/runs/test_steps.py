"""The steps of a run: their states, why their pods wait, and why they failed."""

from __future__ import annotations

from typing import Any

import pytest
from run_objects import TRAIN, run

from pipelines.runs.steps import last_death, reason_in, steps, waiting


def pod(task: str, phase: str, name: str = "p", **status: Any) -> dict[str, Any]:
    node = {"workflows.argoproj.io/node-name": f"w(0).root(0).{task}"}
    metadata = {"name": name, "namespace": "kubeflow", "annotations": node, "creationTimestamp": f"2026-01-01T{name}"}
    return {"metadata": metadata, "status": {"phase": phase, **status}}


def test_a_step_has_the_state_of_its_driver_until_it_starts() -> None:
    result = {step.name: step.state for step in steps(run(train_driver="FAILED", train_2="RUNNING", merge="SUCCEEDED"))}
    assert result[TRAIN] == "FAILED"
    assert result["train mini-B/2"] == "RUNNING"
    assert result["report"] == ""
    assert {step.name: step.state for step in steps(run(train_driver="SUCCEEDED"))}[TRAIN] == ""


def test_pending_pods_have_a_reason_and_a_remedy() -> None:
    unscheduled = [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]
    pulling = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    starting = {"waiting": {"reason": "ContainerCreating"}}
    result = waiting(
        run(),
        [
            pod("train(0).executor(0)", "Pending", "a", conditions=unscheduled),
            pod("train-2-driver(0)", "Pending", "b", containerStatuses=[{"name": "main", "state": pulling}]),
            pod("report(0).executor(0)", "Pending", "c", containerStatuses=[{"name": "main", "state": starting}]),
            pod("merge(0).executor(0)", "Running", "d"),
        ],
    )
    assert result == {
        TRAIN: "pod kubeflow/a finds no node: 0/3 nodes are available; it waits for a free node: kubectl describe"
        " nodes",
        "train mini-B/2": "pod kubeflow/b cannot pull its image: no such image; push the image, or correct its name or"
        " pull secret (docs/cluster.md, Private registries)",
    }


def test_the_reason_is_that_of_the_newest_failed_pod() -> None:
    def dead(name: str, code: int = 1, **ended: str) -> dict[str, Any]:
        status = [{"name": "wait", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]
        status += [{"name": "main", "state": {"terminated": {"exitCode": code, **ended}}}]
        return pod("train(1).executor(0)", "Failed", name, containerStatuses=status)

    pods = [
        dead("02", reason="Error", message="the second\ntry"),
        dead("01", 137, reason="OOMKilled"),
        pod("train", "Running"),
    ]
    assert last_death(run(), TRAIN, pods) == ("02", "the second try")
    assert last_death(run(), TRAIN, pods[1:]) == ("01", "OOMKilled, exit code 137, SIGKILL")
    assert last_death(run(), TRAIN, [dead("05", 137, reason="Error")]) == ("05", "exit code 137, SIGKILL; memory?")
    assert last_death(run(), TRAIN, [dead("03", reason="Error")]) == ("03", "")
    assert last_death(run(), "report", pods) is None
    evicted = pod("train(0).executor(0)", "Failed", "04", reason="Evicted", message="The node was low on memory")
    assert last_death(run(), TRAIN, [evicted]) == ("04", "The node was low on memory")


AROUND = [
    "I1125 07:44:26.019770 15 launcher_v2.go:206] publish",
    'time=2026-11-25T07:44:26Z msg="x"',
    "Error: exit status 1",
]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (["dit: first", "x", "dit: second", "launcher: exit status 1"], "second"),
        (["Traceback", "ImportError: no name", "", *AROUND], "ImportError: no name"),
        # Whatever stood last is no reason.
        (["worker-1: waiting for the rendezvous at a:1: Name or service not known", *AROUND], ""),
        (
            ["worker-0: step 1298", "F1125 07:44:26.0 15 main.go:72] failed to execute component: signal: killed"],
            "was killed by signal 9 (SIGKILL); memory?",
        ),
        (AROUND, ""),
    ],
)
def test_the_reason_in_a_log_is_an_error_line_or_the_signal(log: list[str], reason: str) -> None:
    assert reason_in("\n".join(log)) == reason
