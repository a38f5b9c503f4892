"""Reports ranks that do not get on: a printed line, the health log, and the MLflow run. Torch-free."""

from __future__ import annotations

from dit.console import say
from dit.health.gate import event
from dit.health.log import add_event, read_events
from dit.health.progress import PROGRESS, Stalled
from dit.storage import Store
from dit.study import layout
from dit.study.checks import CheckName
from dit.study.config import StudyConfig
from dit.study.runs import Run
from dit.tracking.live_run import tag_live_run

CHECK: CheckName = "progress"
TAG = f"health/{CHECK}"


def is_watched(config: StudyConfig) -> bool:
    """Whether the study has the check."""
    return config.health.get(CHECK) != "off"


def stops(config: StudyConfig) -> bool:
    """Whether the study's training ends for good where ranks do not get on, instead of being restarted."""
    return config.health.get(CHECK) == "stop"


def report(config: StudyConfig, store: Store, run: Run, found: Stalled) -> str:
    """Report the ranks for which the others wait; return the message.

    Raises StoreError when the store fails.
    """
    reading = PROGRESS.read(found)
    assert reading is not None
    health = event(PROGRESS, reading, found.stall.step, run.name, config.health.get(CHECK))
    say(f"{health.action}: {health.message}")
    key = layout.health(config, run)
    last = next((old for old in reversed(read_events(store, key)) if old.check == CHECK), None)
    if last is None or (last.step, last.action, last.bound) != (health.step, health.action, health.bound):
        add_event(store, key, health)
    tag_live_run(config, store, run, {TAG: health.message})
    return health.message
