"""A tag on the MLflow run of a training whose own processes cannot log it, because they are frozen.

It goes directly to the server: the journal belongs to the process that writes it. The tag repeats what the store has,
so nothing is lost when the server does not answer.

python -m dit.tracking.live_run < request.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dit.console import say
from dit.errors import one_line
from dit.storage import Store, read_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.runs import Run
from dit.tracking.state import TrackingRun
from dit.tracking.target import Target, resolve_target

SECONDS = 60.0
"""Time for the import of MLflow and the server's answer."""


def tag_live_run(config: StudyConfig, store: Store, study_run: Run, tags: Mapping[str, str]) -> None:
    """Set tags on a variant's run; without a run, or with `tracking.kind: none`, nothing happens.

    Takes at most a minute. A server that does not answer is reported, not raised.

    Raises StoreError when the store fails.
    """
    run = read_record(store, layout.tracking_run(config, study_run), TrackingRun)
    if config.tracking.kind != "mlflow" or run is None:
        return
    request = {"target": asdict(resolve_target(config, store)), "run_id": run.run_id, "tags": dict(tags)}
    command = [sys.executable, "-m", "dit.tracking.live_run"]
    try:
        # In a process of its own: MLflow takes seconds to import, and minutes to give up.
        ended = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=SECONDS, check=False
        )
        problem = one_line(ended.stderr.strip().rpartition("\n")[2]) if ended.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"no answer within {SECONDS:g} s"
    if problem:
        say(f"tracking: the run of {study_run.name} was not tagged: {problem}")


def _tag(request: dict[str, Any]) -> None:
    from dit.tracking.mlflow_client import MlflowRuns

    MlflowRuns(Target(**request["target"])).set_tags(request["run_id"], request["tags"])


if __name__ == "__main__":
    _tag(json.load(sys.stdin))
