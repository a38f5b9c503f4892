"""Ranks: variables of the environment, collectives, and the loss of a rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ports import reserved_port

from dit.errors import ConfigError, PeerError
from dit.runtime.distributed import environment_rank, environment_world_size, session

TIMEOUT_SECONDS = 240
SHORT = {"DIT_COLLECTIVE_TIMEOUT": "10"}

# The time from here on is not that of the imports, which differs between processes of a busy machine.
TOGETHER = """
import os, time, torch.distributed
open(os.environ["MET"] + os.environ["RANK"], "w").close()
while not all(os.path.exists(os.environ["MET"] + rank) for rank in "01"):
    time.sleep(0.01)
"""

COLLECTIVES = """
import torch
from dit.runtime.distributed import session
for number in range(3):
    with session("cpu") as ranks:
        total = ranks.all_reduce_sum(torch.tensor([1.0 + ranks.rank, 10.0]))
        assert total.tolist() == [3.0, 20.0], total
        assert ranks.maximum(5 * ranks.rank) == 5
        assert ranks.broadcast({"from": ranks.rank, "session": number}) == {"from": 0, "session": number}
        ranks.barrier()
print("rank", ranks.rank, "local", ranks.local_rank, "of", ranks.world_size)
"""

LOST_RANK = """
import os, sys, time
from dit.runtime.distributed import session
from dit.errors import DitError
try:
    with session("cpu") as ranks:
        ranks.barrier()
        if ranks.rank == 1:
            {fate}
        ranks.{meeting}
except DitError as error:
    sys.stderr.write(str(error))
    sys.exit(error.exit_code)
"""

SLOW_RANK = """
import time
from dit.runtime.distributed import session
with session("cpu") as ranks:
    ranks.barrier()
    if ranks.rank == 1:
        time.sleep(15)
    ranks.barrier()
    assert ranks.maximum(ranks.rank) == 1
"""


def start_ranks(code: str, port: int, folder: Path, **environment: str) -> list[subprocess.Popen[str]]:
    """Two processes as a PyTorchJob starts them: RANK and WORLD_SIZE, no LOCAL_RANK."""
    met = {"MET": str(folder / f"{port}-"), "OMP_NUM_THREADS": "1"}
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **met, **environment}
    return [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER + code],
            env={**common, "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for rank in range(2)
    ]


def test_session_without_a_launcher_is_one_rank() -> None:
    with session("cpu") as ranks:
        assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.is_main) == (0, 1, 0, True)
        assert ranks.broadcast("x") == "x"
        assert ranks.maximum(7) == 7
        ranks.barrier()


def test_rank_counts_only_with_a_world_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert (environment_rank(), environment_world_size()) == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (environment_rank(), environment_world_size()) == (3, 4)


@pytest.mark.parametrize("wrong", ["WORLD_SIZE=0", "WORLD_SIZE=two", "DIT_COLLECTIVE_TIMEOUT=-1", "RANK=2"])
def test_impossible_environment_is_named(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2" if wrong == "RANK=2" else "1")
    monkeypatch.setenv(*wrong.split("="))
    with pytest.raises(ConfigError, match=wrong), session("cpu"):
        pass


def test_two_ranks_reduce_and_sessions_follow_one_another(tmp_path: Path) -> None:
    with reserved_port() as port:
        for rank, process in enumerate(start_ranks(COLLECTIVES, port, tmp_path)):
            out, err = process.communicate(timeout=TIMEOUT_SECONDS)
            assert process.returncode == 0, err
            assert out.strip() == f"rank {rank} local 0 of 2"


@pytest.mark.slow
def test_barrier_waits_longer_than_the_timeout_of_collectives(tmp_path: Path) -> None:
    with reserved_port() as port:
        for process in start_ranks(SLOW_RANK, port, tmp_path, **SHORT):
            _, err = process.communicate(timeout=TIMEOUT_SECONDS)
            assert process.returncode == 0, err


@pytest.mark.slow
def test_rank_that_dies_or_hangs_fails_the_others_with_one_line(tmp_path: Path) -> None:
    with reserved_port() as first, reserved_port() as second:
        pairs = [
            start_ranks(LOST_RANK.format(fate="os._exit(9)", meeting="barrier()"), first, tmp_path),
            start_ranks(LOST_RANK.format(fate="time.sleep(600)", meeting="maximum(0)"), second, tmp_path, **SHORT),
        ]
        for survivor, lost in pairs:
            try:
                _, err = survivor.communicate(timeout=TIMEOUT_SECONDS)
            finally:
                lost.kill()
                lost.communicate()
            assert survivor.returncode == PeerError.exit_code, err
            assert "lost contact with the other ranks" in err
