"""`dit ui` shows results that were copied, lost their database, or were tracked to a server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ports import reserved_port
from tracked_study import PATIENCE_SECONDS, STUDY, VARIANTS, Tracked, end_shippers, losses, picture, train, until

from dit.storage import open_store, read_record, write_record
from dit.study import layout, study_file
from dit.tracking import flush, open_tracker
from dit.tracking.lock_file import is_held
from dit.tracking.mlflow_ui import server_command
from dit.tracking.paths import study_folder
from dit.tracking.state import TrackingRun

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
SHIPPED, UNSHIPPED, KILLED = "mini-S/2", "mini-B/2", "mini-L/2"
SERVER = TrackingRun(journal="1", run_id="2", experiment_id="7", uri="http://mlflow:5000")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results whose original folder no longer exists."""
    folder = tmp_path_factory.mktemp("made")
    config, store = study_file.load(STUDY, [VARIANTS]), open_store(folder / "old")
    training = train(store, config.run(KILLED), 10, 50, then=300, wait=False)
    study = study_folder(config, store)
    until(lambda: is_held(study.lock), "the training has started its shipper")
    training.kill()
    training.communicate()
    until(lambda: not is_held(study.lock), "the shipper has ended after its training")
    assert Tracked(f"sqlite:///{folder}/old/mlflow.db").statuses == {"digits": "KILLED", KILLED: "KILLED"}
    with open_tracker(config, store, config.run(SHIPPED)) as tracker:
        tracker.params({"depth": 3})
        tracker.metrics(10, {"loss": 1 / 10})
        tracker.image("samples", 10, picture(255))
        tracker.artifact("report.html", b"<html>")
    assert flush(config, store, timeout=PATIENCE_SECONDS)
    with open_tracker(
        study_file.load(STUDY, [VARIANTS, "tracking.kind=none"]), store, config.run(UNSHIPPED)
    ) as tracker:
        tracker.metrics(20, {"loss": 1 / 20})
    end_shippers(folder)
    until(lambda: not is_held(study.lock), "the shipper is gone")
    return Path(shutil.move(folder / "old", folder / "archive"))


@pytest.mark.parametrize("lost", ["nothing", "mlflow.db", "studies/digits/tracking/shipper.json", "mlartifacts"])
def test_copied_results_are_complete_below_a_new_root(lost: str, archive: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(archive, tmp_path / "new root"))
    config, store = study_file.load(STUDY, [VARIANTS]), open_store(root)
    key = layout.tracking_run(config, config.run(SHIPPED))
    if lost == "mlartifacts":
        shutil.rmtree(root / lost)
        for study_run in (config.run(SHIPPED), None):
            write_record(store, layout.tracking_run(config, study_run), SERVER)
    else:
        (root / lost).unlink(missing_ok=True)
    if lost == "mlflow.db":
        # In the new database, another experiment has the id of the study's former one.
        MlflowClient(f"sqlite:///{root}/{lost}").create_experiment("other")
    with reserved_port() as port:
        address, _ = server_command(str(root), "127.0.0.1", port)
    assert "viewStateShareKey=digits" in address
    tracked = Tracked(f"sqlite:///{root}/mlflow.db")
    assert tracked.statuses == {"digits": "FINISHED", KILLED: "KILLED", SHIPPED: "FINISHED", UNSHIPPED: "FINISHED"}
    assert tracked.run(SHIPPED).data.params == {"depth": "3"}
    for name, steps in {KILLED: range(10, 60, 10), SHIPPED: [10], UNSHIPPED: [20]}.items():
        assert tracked.history(name, "loss") == losses(*steps)
        assert tracked.run(name).data.tags["mlflow.parentRunId"] == tracked.run("digits").info.run_id
    files = tracked.files(SHIPPED)
    assert "report.html" in files
    assert len([path for path in files if path.endswith(".png")]) == 1
    read = Path(tracked.client.download_artifacts(tracked.run(SHIPPED).info.run_id, "report.html"))
    assert read.read_bytes() == b"<html>"
    experiments = tracked.client.search_experiments()
    addresses = [run.info.artifact_uri for run in tracked.runs] + [
        experiment.artifact_location for experiment in experiments
    ]
    addresses += [path.read_text() for path in root.rglob("tracking*.json")]
    assert not [address for address in addresses if str(archive.with_name("old")) in address]
    assert (read_record(store, key, TrackingRun) == SERVER) == (lost == "mlartifacts")
    end_shippers(root)
