"""What holds for all tests: no clock judges them, nothing of the caller's reaches them, and long ones begin first."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from s3_fixtures import large, s3_environment, s3_proxy, s3_server, s3_store

__all__ = ["large", "s3_environment", "s3_proxy", "s3_server", "s3_store"]
"""Fixtures that every test may ask for."""

# No test is judged by the clock: a machine that others share can be any number of times slower.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# What would send tests to the caller's servers, stores, credentials or launcher.
FOREIGN = ("AWS_", "DIT_", "MLFLOW_", "PET_", "TORCHELASTIC_")
LAUNCHER = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
KEPT = {"DIT_TEST_SEED"}
# What hides output that is not flushed, and the size of the caller's terminal.
HIDING = {"PYTHONUNBUFFERED", "COLUMNS", "LINES"}


@pytest.fixture(scope="session", autouse=True)
def _environment_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every worker has a cache of its own; none reads what the caller has set."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - KEPT:
            if name.startswith(FOREIGN) or name in LAUNCHER | HIDING:
                patch.delenv(name)
        patch.setenv("DIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: one worker more than there are cores that this process may use, for some tests only wait.

    None where they would have one file between them.
    """
    files = {argument.partition("::")[0] for argument in config.args}
    alone = len(files) == 1 and Path(files.pop()).is_file()
    return 0 if alone else len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole studies, then files with the most slow tests, so that no worker begins a long one when others are done."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: ("e2e" not in item.path.parts, -slow[item.path]))
