"""A lease in a store: taken, renewed, taken over when its holder is gone, refused while it is renewed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from s3_proxy import Proxy

from dit.errors import LeaseError
from dit.storage import Store, lease, open_store
from dit.storage.lease import JOB, LeaseRecord, leased, read_lease

KEY = "studies/a/lease.json"
ROOT = Path(__file__).parents[3]
KILLED = f"""
import os, sys
from dit.storage import open_store
from dit.storage.lease import leased
with leased(open_store(sys.argv[1]), {KEY!r}, "the training"):
    os.kill(os.getpid(), 9)
"""


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    result: Store = open_store(tmp_path / "root") if request.param == "file" else request.getfixturevalue("s3_store")
    return result


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 1.5)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.05)


def elsewhere(store: Store, **other: object) -> LeaseRecord:
    """Put another machine's lease there."""
    record = LeaseRecord(
        holder="h", job="ns/job", host="gpu-7", machine="boot", process=42, began=1, since="2026-01-01 10:00:00+00:00"
    ).model_copy(update=other)
    store.write(KEY, record.to_json())
    return record


def test_lease_is_there_while_it_is_held_and_renewed(store: Store) -> None:
    with leased(store, KEY, "the training") as held:
        first = read_lease(store, KEY)
        assert first is not None
        assert (first.host, first.process) == (os.uname().nodename, os.getpid())
        wait_until(lambda: (read_lease(store, KEY) or first).renewals > 1)
        held.check()
    assert read_lease(store, KEY) is None


def test_lease_that_is_renewed_is_refused_with_its_holder(store: Store) -> None:
    named = pytest.raises(LeaseError, match=rf"process {os.getpid()} on .*, since 2")
    with leased(store, KEY, "the training"), named, leased(store, KEY, "the training"):
        pass


@pytest.mark.parametrize("job", ["", "other/job"])
def test_lease_of_another_machine_is_taken_over_when_it_is_not_renewed(
    job: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere(store, job=job)
    with leased(store, KEY, "the training"):
        assert "process 42 on gpu-7, since 2026-01-01 10:00:00+00:00; waiting" in capsys.readouterr().out


def test_a_later_pod_of_the_same_job_continues_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 3600)
    monkeypatch.setenv(JOB, "ns/job")
    elsewhere(store)
    with leased(store, KEY, "the training"):
        pass


def test_lease_of_a_killed_process_of_this_machine_is_free_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 3600)
    done = subprocess.run([sys.executable, "-c", KILLED, store.url], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert read_lease(store, KEY) is not None
    with leased(store, KEY, "the training"):
        pass
    # Another process has the number by now.
    with leased(store, KEY, "the training"):
        mine = read_lease(store, KEY)
    assert mine is not None
    store.write(KEY, mine.model_copy(update={"began": mine.began - 1}).to_json())
    with leased(store, KEY, "the training"):
        pass


def test_process_whose_lease_was_taken_over_is_told_and_leaves_it_alone(store: Store) -> None:
    with leased(store, KEY, "the training") as held:
        other = elsewhere(store)
        with pytest.raises(LeaseError, match="taken over by job ns/job, process 42 on gpu-7"):
            wait_until(lambda: held.check() is not None)
    assert read_lease(store, KEY) == other


def test_lease_outlives_a_store_that_is_away(s3_store: Store, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with leased(s3_store, KEY, "the training") as held:
        # Stored, but the answer is an error: the holder must not take its own renewal for another's.
        s3_proxy.fail_after_storing(503, "PUT", KEY)
        before = len(s3_proxy.seen)
        wait_until(lambda: sum(request.method == "PUT" for request in s3_proxy.seen[before:]) > 2)
        s3_proxy.lost = None
        now = read_lease(s3_store, KEY)
        assert now is not None
        wait_until(lambda: (read_lease(s3_store, KEY) or now).renewals > now.renewals)
        held.check()


def wait_until(condition: object) -> None:
    ended = threading.Event()
    assert callable(condition)
    for _ in range(600):
        if condition():
            return
        ended.wait(0.05)
    raise AssertionError("it never happens")
