"""Lines of pod logs: their time stamps, and which of torchrun's are hidden."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from job_objects import BORN, NAME, Api, running_pod

from pipelines.cluster.client import Cluster
from pipelines.jobs.logs import PodLogs, of_torchrun, split_stamp


def test_time_stamps_of_log_lines_sort_as_times_do() -> None:
    lines = ["2026-01-01T10:00:00Z a", "2026-01-01T10:00:00.12Z b", "2026-01-01T10:00:00.123456789Z c d"]
    stamps = [split_stamp(line)[0] for line in lines]
    assert stamps == sorted(stamps)
    assert split_stamp(lines[2])[1] == "c d"


@pytest.mark.parametrize(
    ("line", "hidden"),
    [
        ("I1125 10:59:28.915000 1 torch/distributed/elastic/agent/server/api.py:553]   global_ranks=[1]", True),
        ("I1125 10:59:28.915000 1 torch/distributed/launcher/api.py:254] ", True),
        ("[W1125 10:59:32.112736095 socket.cpp:207] [c10d] The hostname of the client socket cannot be", True),
        ("[W1125 10:59:32.112736095 socket.cpp:464] [c10d] Timed out", False),
        ("E1125 10:59:28.915000 1 torch/distributed/elastic/multiprocessing/api.py:1010] failed (exitcode: 1)", False),
        ("W1125 10:59:28.915000 1 torch/distributed/elastic/agent/server/api.py:739] Received 15 death signal", False),
        ("train mini-S/2: 1,272/5,200 step (24 %), 32.4 step/s", False),
        ("dit: mini-S/2: step 3: loss is not finite (rank 1)", False),
    ],
)
def test_of_torchruns_messages_only_errors_and_warnings_are_printed(line: str, hidden: bool) -> None:
    assert of_torchrun(line) is hidden


def test_a_restarted_pod_of_the_same_name_has_its_own_log(
    api: Api, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = running_pod(0, "old"), running_pod(0, "new")
    api.logs = {"old": f"{BORN} first\n", "new": "2026-01-01T10:05:00Z second\n2026-01-01T10:05:01Z third\n"}
    api.pods = [old]
    logs = PodLogs(cluster, NAME)
    logs.follow([old])
    _until(lambda: logs.last_lines("old") == ["first"])
    api.pods = [new]
    logs.follow([new])
    _until(lambda: logs.last_lines("new") == ["second", "third"])
    logs.close()
    assert logs.last_lines("old") == ["first"]
    message = [line for line in capsys.readouterr().out.splitlines() if line.startswith("worker-0: ")]
    assert message == ["worker-0: first", "worker-0: second", "worker-0: third"]


def _until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("never so")
