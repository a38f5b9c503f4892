"""The launcher names ranks that do not get on, and starts their job again."""

from __future__ import annotations

from typing import Any

import pytest
from job_objects import CONFIG, NAME, RUNNING, SUCCEEDED, Api, job, running_pod, snapshot, spec
from s3_proxy import BUCKET

from dit.errors import FinalError
from dit.health.log import read_events
from dit.health.stall import LONG_SECONDS
from dit.storage import Store, open_store, write_record
from dit.study import layout
from dit.study.records import RankProgress
from dit.study.study_file import load
from pipelines.cluster.client import Cluster
from pipelines.jobs import launch, watch
from pipelines.jobs.stalls import LOOK_SECONDS, StallWatch

ROOT = f"s3://{BUCKET}/dit"
SETTINGS = ("cluster.replicas=2", "tracking.kind=none")
POD = f"{NAME}-worker-1"
pytestmark = pytest.mark.usefixtures("s3_environment")


def pods(*restarts: int) -> list[dict[str, Any]]:
    running = [running_pod(index, f"pod-{index}") for index in range(2)]
    for pod, count in zip(running, restarts, strict=False):
        pod["status"]["containerStatuses"][0]["restartCount"] = count
    return running


def write(store: Store, rank: int, written: float, step: int) -> None:
    config = load(CONFIG)
    record = RankProgress(
        rank=rank,
        world_size=2,
        host=f"{NAME}-worker-{rank}",
        process=1,
        step=step,
        step_time=0.0,
        written=written,
        activity="step",
        step_seconds=1.0,
    )
    write_record(store, layout.rank_progress(config, config.spec("mini-S/2"), rank), record)


class Training:
    """A job of two pods, whose rank 1 freezes after a minute."""

    def __init__(self, cluster: Cluster, *settings: str) -> None:
        self.config = load(CONFIG, [*SETTINGS, *settings])
        self.spec = spec(*SETTINGS, *settings, root=ROOT)
        self.store = open_store(ROOT)
        self.stalls = StallWatch(self.config, self.spec, cluster)

    def until(self, seconds: int, *restarts: int, start: int = 0) -> str:
        """The last answer of the looks up to this second; after 1,000 seconds no rank writes."""
        why = ""
        for now in range(start, seconds + 1, int(LOOK_SECONDS)):
            if start < 1000:
                write(self.store, 0, now, min(now, 60))
                write(self.store, 1, min(now, 60), min(now, 60))
            why = self.stalls.look(snapshot(job(RUNNING), pods(*restarts)), now + 1000.0)
        return why

    @property
    def messages(self) -> list[str]:
        spec = self.config.spec("mini-S/2")
        return [event.message for event in read_events(self.store, layout.health(self.config, spec))]


def test_a_frozen_worker_is_named_within_5_minutes_and_its_job_started_again_after_the_patience(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(cluster)
    assert training.until(270) == ""
    assert training.messages == []
    assert training.until(360, start=300) == ""
    [message] = training.messages
    assert f"rank 1 on {POD}: no sign of life since " in message
    assert "last step 60" in message
    assert "started again from its last checkpoint after 15m 00s (cluster.patience.stall)" in message
    assert message in capsys.readouterr().out
    # The other rank fails meanwhile and its pod restarts, which does not end the stall.
    assert training.until(900, 1, start=390) == ""
    assert f"rank 1 on {POD}: no sign of life" in training.until(990, 1, start=930)
    assert len(training.messages) == 1


def test_pods_that_restart_are_given_time_to_load(cluster: Cluster) -> None:
    training = Training(cluster)
    training.until(90)
    assert training.until(1500, 1, 1, start=1020) == ""
    assert training.messages == []


def test_a_job_without_a_sign_of_its_ranks_is_started_again_after_an_hour(cluster: Cluster) -> None:
    stalls = Training(cluster).stalls
    whys = [stalls.look(snapshot(job(RUNNING), pods()), now) for now in (1000.0, 1000 + LONG_SECONDS - 1)]
    assert whys == ["", ""]
    assert "no rank has shown a sign of life" in stalls.look(snapshot(job(RUNNING), pods()), 1000 + 2 * LONG_SECONDS)


def test_the_check_can_be_off(cluster: Cluster) -> None:
    training = Training(cluster, "health.progress=off")
    assert training.until(300) == ""
    assert training.messages == []


@pytest.fixture
def stalled(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first job does not get on; a second one succeeds."""
    api.job, api.pods, api.logs = job(RUNNING), pods(), {"pod-0": "", "pod-1": ""}

    def look(_: StallWatch, __: object, ___: float) -> str:
        assert api.job is not None
        if api.job["metadata"]["uid"] == "job-1":
            api.pods = []
            return f"rank 1 on {POD}: no sign of life"
        api.job["status"] = job(SUCCEEDED)["status"]
        return ""

    monkeypatch.setattr(StallWatch, "look", look)
    monkeypatch.setattr(launch, "submit", lambda *_: _created(api))


def _created(api: Api) -> str:
    if api.job is None:
        api.job = job(RUNNING, uid="job-2")
    return str(api.job["metadata"]["uid"])


@pytest.mark.usefixtures("stalled")
def test_the_launcher_deletes_a_job_that_does_not_get_on_and_creates_it_again(
    api: Api, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    # The store of the test has no result of the training that succeeded at last.
    with pytest.raises(Exception, match="succeeded but left no result"):
        launch.launch(load(CONFIG, SETTINGS), spec(*SETTINGS, root=ROOT), cluster)
    assert ("DELETE", NAME) in api.asked
    assert f"rank 1 on {POD}: no sign of life; the job was deleted; it is created again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "final"), [("health.progress=stop", True), ("cluster.backoff_limit=0", False)], ids=["stop", "last"]
)
@pytest.mark.usefixtures("stalled")
def test_a_study_can_end_a_training_that_does_not_get_on(setting: str, final: bool, cluster: Cluster) -> None:
    with pytest.raises(watch.JobFailed, match="no sign of life; the job was deleted") as caught:
        launch.launch(load(CONFIG, [*SETTINGS, setting]), spec(*SETTINGS, setting, root=ROOT), cluster)
    assert (caught.value.exit_code == FinalError.exit_code) == final
