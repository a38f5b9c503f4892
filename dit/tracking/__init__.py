"""Parameters, metrics and artifacts of runs. The journals in the store are the truth; MLflow is a view of them.

    with open_tracker(config, store, spec, enabled=ranks.is_main) as tracker:
        tracker.params({"depth": spec.depth})
        tracker.metrics(step, {"loss": loss})

Map of the files, in the order in which a point passes them. Importing this imports neither mlflow nor torch.

    tracker.py          what a stage calls: one call appends one line to a journal
    journal.py          the file of lines; writer_session.py: who writes to it, and which of them were killed
    store_copy.py       the journal's copy in a remote store
    paths.py            where all these files are; lock_file.py: locks that end with their process
    shipper_process.py  starts the shipper as a child of this process, waits for delivery, ends runs of killed processes
    shipper.py          that child: sends every journal of one study to one target.py (server or database)
    journal_upload.py   one journal to one MLflow run; state.py: the one file of how far each journal has come
    mlflow_client.py    the only module that imports mlflow; mlflow_database.py: its SQLite file without mlflow
    mlflow_ui.py        fills the database below a root and serves MLflow's pages; mlflow_view.py: a study's charts
"""

from dit.tracking.journal import Point
from dit.tracking.shipper_process import flush, reconcile, start_shipping
from dit.tracking.tracker import Tracker, collect, end_failed, open_tracker, read_points

__all__ = [
    "Point",
    "Tracker",
    "collect",
    "end_failed",
    "flush",
    "open_tracker",
    "read_points",
    "reconcile",
    "start_shipping",
]
