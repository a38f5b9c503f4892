"""Parameters, metrics and artifacts of runs: to a journal on disk first, from there to MLflow by a process apart.

    with open_tracker(config, store, spec, enabled=ranks.is_main) as tracker:
        tracker.params({"depth": spec.depth})
        tracker.metrics(step, {"loss": loss})

Importing this imports neither mlflow nor torch.
"""

from dit.tracking.journal import Point
from dit.tracking.reconcile import collect, end_failed, flush, reconcile
from dit.tracking.tracker import Tracker, open_tracker, read_points

__all__ = ["Point", "Tracker", "collect", "end_failed", "flush", "open_tracker", "read_points", "reconcile"]
