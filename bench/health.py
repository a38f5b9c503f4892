"""What the health checks cost: a whole training of the digits with them and without them, in turn.

CPU seconds of the process, not wall time: the share is about 1 %, less than what other work on a machine changes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from bench.harness import Row
from dit.results.stages import Work
from dit.stages import prepare
from dit.storage import open_store
from dit.study.study_file import load
from dit.training import run as launch
from dit.training.watch import TrainingWatch

STUDY = Path(__file__).parents[1] / "configs" / "digits.yaml"
_METHODS = ("__init__", "begin", "fed", "stepped", "logged", "probe", "end")


class _Unwatched:
    """Sees everything and does nothing: a training without checks."""

    def __init__(self, *_: object) -> None: ...

    def begin(self) -> None: ...

    def fed(self, _: object) -> None: ...

    def stepped(self) -> None: ...

    def logged(self, *_: object) -> None: ...

    def probe(self) -> None: ...

    def end(self) -> None: ...


def measure(variant: str, checks: bool) -> dict[str, Any]:
    """Training steps per CPU second; beside it, the share that is spent inside the checks."""
    config = load(STUDY, ["tracking.kind=none", "fit.threads=1", "fit.checkpoint_every=500"])
    spent = dict.fromkeys(_METHODS, 0.0)
    if checks:
        for name in _METHODS:
            setattr(TrainingWatch, name, _timed(getattr(TrainingWatch, name), name, spent))
    else:
        launch.TrainingWatch = _Unwatched  # type: ignore[misc,assignment]
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        prepare.run(config, store)
        start = time.process_time()
        launch.execute(Work(config, store), config.run(variant))
        seconds = time.process_time() - start
    shares = {f"in {name}": f"{part / seconds:.2%}" for name, part in spent.items() if part}
    return {
        "rate": config.train.steps / seconds,
        "beside": {"inside the checks": f"{sum(spent.values()) / seconds:.2%}", **shares} if checks else {},
    }


def _timed(method: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    @wraps(method)
    def timed(*arguments: Any) -> Any:
        start = time.thread_time()
        try:
            return method(*arguments)
        finally:
            spent[name] += time.thread_time() - start

    return timed


def rows() -> list[Row]:
    """The smallest and a larger model of the digits: the larger the model, the smaller the share."""
    return [
        Row(
            f"training with health checks, {variant}",
            "steps/CPU-s",
            __name__,
            {
                "without checks": {"variant": variant, "checks": False},
                "with checks": {"variant": variant, "checks": True},
            },
        )
        for variant in ("mini-S/2", "mini-L/2")
    ]
