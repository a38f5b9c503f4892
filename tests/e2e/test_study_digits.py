"""A small digits study through `dit study`: to its verdict, repeated, interrupted, killed and failed."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from dataset_fixtures import flip_bit

from dit.errors import FinalError
from dit.storage import open_store
from dit.study.study_file import load
from dit.tracking import read_points

REPOSITORY = Path(__file__).parents[2]
OVERRIDES = (
    "variants=[mini-S/2, mini-B/2]",
    "train.steps=40",
    "train.global_batch=32",
    "evaluation.at_steps=[20,40]",
    "evaluation.resamples=40",
    "sampling.steps=5",
    "sampling.num_samples=60",
    "fit.parallel_variants=2",
    "fit.checkpoint_every=4",
    "fit.log_every=4",
)
STEPS = 14
ORDER = [(stage, step) for step in (20, 40) for stage in ("train", "sample", "evaluate")]
SECONDS = 1500
"""Deadline of whatever must happen; a machine that others share can be many times slower."""
pytestmark = pytest.mark.timeout(2 * SECONDS)


@dataclass
class Study:
    """A small study in its own folder; `mark` is in the environment of each of its processes."""

    root: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        settings = [word for override in (*OVERRIDES, *overrides) for word in ("--set", override)]
        return subprocess.Popen(
            [sys.executable, "-m", "dit", "study", "configs/digits.yaml", "--root", str(self.root), *settings],
            cwd=REPOSITORY,
            env=os.environ | {"TEST_MARK": self.mark, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *overrides: str) -> tuple[int, str, str]:
        process = self.start(*overrides)
        try:
            output, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        return process.returncode, output, errors

    def steps_under_way(self) -> list[int]:
        """Processes of the study that run a step of the pipeline."""
        return self._processes(b"kfp.dsl.executor_main")

    def processes(self) -> list[int]:
        """These processes and the workers that run them."""
        return self.steps_under_way() + self._processes(b"pipelines.local.worker")

    def _processes(self, module: bytes) -> list[int]:
        numbers = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = self.mark.encode() in (folder / "environ").read_bytes()
                if marked and module in (folder / "cmdline").read_bytes().replace(b"sh\0-ec", b""):
                    numbers.append(int(folder.name))
            except OSError:
                continue
        return numbers

    def events(self) -> list[str]:
        """Beginnings and ends of steps, in the order of the log."""
        lines = (self.root / "logs/digits.log").read_text().splitlines()
        return [event for line in lines if (event := line.partition("| ")[2]).startswith(("begin: ", "end: "))]

    def losses(self) -> dict[str, float]:
        config, store = load(REPOSITORY / "configs/digits.yaml", OVERRIDES), open_store(self.root)
        return {
            f"{study_run.name} {point.step}": point.value
            for study_run in config.runs
            for point in read_points(config, store, study_run)
            if point.key == "loss"
        }

    def statuses(self) -> set[str]:
        """Statuses of its runs in MLflow; empty before its tables exist, which a client would create."""
        with (
            suppress(sqlite3.OperationalError),
            closing(sqlite3.connect(f"file:{self.root}/mlflow.db?mode=ro", uri=True)) as database,
        ):
            return {status for (status,) in database.execute("SELECT status FROM runs")}
        return set()

    def files(self, below: str = "") -> dict[str, int]:
        paths = [path for path in (self.root / below).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): path.stat().st_mtime_ns for path in paths}

    def values(self) -> dict[str, float]:
        records = [json.loads(path.read_bytes()) for path in (self.root / "studies").glob("*/*/metrics/*.json")]
        return {f"{r['variant']} {r['step']}": r["metrics"][r["metric"]]["value"] for r in records}


Finished = tuple[Study, str]


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def no_survivors(study: Study) -> Iterator[None]:
    """Check that after the body no process of the study stays alive."""
    yield
    deadline = time.monotonic() + SECONDS
    while study.processes():
        assert time.monotonic() < deadline, study.processes()
        time.sleep(0.1)


def wait_for_end_in_mlflow(study: Study) -> None:
    """Wait until no run of the study is RUNNING."""
    deadline = time.monotonic() + SECONDS
    while not (statuses := study.statuses()) or "RUNNING" in statuses:
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """An undisturbed study and what it printed."""
    study = Study(tmp_path_factory.mktemp("study") / "runs")
    code, output, errors = study.run()
    assert code == 0, errors
    return study, output


def test_the_study_ends_with_table_verdict_and_paths(finished: Finished) -> None:
    study, output = finished
    assert [line for line in output.splitlines() if line.startswith(f"{STEPS}/{STEPS} ")] == [f"{STEPS}/{STEPS} report"]
    _, _, end = output.partition(f"{STEPS}/{STEPS} report")
    for named in (
        "mini-S/2",
        "mini-B/2",
        "1.",
        "2.",
        "3.",
        f"make ui ROOT={study.root}, or dit ui --root {study.root}",
    ):
        assert named in end
    report = study.root / "studies/digits/report"
    for name in ("report.html", "runs.csv"):
        assert str(report / name) in end
        assert (report / name).stat().st_size > 0
    with open(report / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["step"]) for row in rows] == [
        (variant, step) for variant in ("mini-S/2", "mini-B/2") for step in ("20", "40")
    ]
    assert {f"{row['variant']} {row['step']}": float(row["value"]) for row in rows} == study.values()
    claims = json.loads((report / "verdict.json").read_bytes())["claims"]
    assert [claim["number"] for claim in claims] == [1, 2, 3]


def test_two_variants_run_at_the_same_time(finished: Finished) -> None:
    events = finished[0].events()
    assert sorted(events) == sorted(
        f"{kind}: {step}"
        for kind in ("begin", "end")
        for step in (
            "prepare",
            *(f"{stage} {name} step {step}" for name in ("mini-S/2", "mini-B/2") for stage, step in ORDER),
            "report",
        )
    )
    for one, other in (("mini-S/2", "mini-B/2"), ("mini-B/2", "mini-S/2")):
        assert events.index(f"begin: train {one} step 20") < events.index(f"end: evaluate {other} step 40")
        # A checkpoint is evaluated before the training goes on.
        own = [event.removeprefix("begin: ") for event in events if event.startswith("begin") and one in event]
        assert own == [f"{stage} {one} step {step}" for stage, step in ORDER]
    assert events[:2] == ["begin: prepare", "end: prepare"]
    assert events[-2:] == ["begin: report", "end: report"]


def test_one_variant_at_a_time_gives_the_same_numbers(finished: Finished, tmp_path: Path) -> None:
    single = Study(tmp_path / "runs")
    code, _, errors = single.run("fit.parallel_variants=1")
    assert code == 0, errors
    events = single.events()
    assert events[1::2] == [event.replace("begin", "end") for event in events[::2]]
    assert single.losses() == pytest.approx(finished[0].losses(), rel=1e-4)
    assert len(single.losses()) == 20
    assert single.values() == pytest.approx(finished[0].values(), rel=1e-4)


def test_the_output_is_free_of_messages_of_the_platform(finished: Finished) -> None:
    study, output = finished
    for noise in ("KFP", "Streamed logs", "Executing task", "\x1b", "\x1e"):
        assert noise not in output
    assert "KFP Executor" in (study.root / "logs/digits.log").read_text()


def check_tracking(study: Study, runs: int) -> None:
    """Every run is FINISHED, and no point of a loss is lost, out of order or doubled."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{study.root}/mlflow.db")
    tracked = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [run.info.status for run in tracked] == ["FINISHED"] * runs
    for run in tracked:
        if run.data.params.get("variant"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
            assert steps == sorted(set(steps))
            assert steps[-1] == 40


def test_every_run_is_finished_in_mlflow(finished: Finished) -> None:
    check_tracking(finished[0], runs=3)


def test_a_second_run_finds_everything_complete_and_changes_nothing(finished: Finished) -> None:
    study, output = finished

    def kept() -> dict[str, int]:
        files = study.files("studies") | study.files("datasets") | study.files("logs")
        # The shipper's own bookkeeping has a new time after each look at the server.
        return {name: changed for name, changed in files.items() if not name.endswith("tracking/shipper.json")}

    before = kept()
    code, again, errors = study.run()
    assert (code, errors) == (0, "")
    assert kept() == before
    assert again.strip().splitlines()[-5:] == output.strip().splitlines()[-5:]


def test_an_interrupted_or_killed_study_continues_with_the_same_numbers(finished: Finished, tmp_path: Path) -> None:
    """Ctrl-C, kill -9 of the starter, kill -9 of all processes: the results equal those of the undisturbed study."""
    study, moment = Study(tmp_path / "runs"), random.Random(os.urandom(8))

    with no_survivors(study):
        process = study.start()
        wait_until(lambda: any(study.root.glob("studies/digits/mini-s-2/checkpoints/*/meta.json")), process)
        time.sleep(moment.uniform(0, 2))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 130
        assert errors.splitlines()[-1].startswith("dit: interrupted")
        assert "Traceback" not in errors
    wait_for_end_in_mlflow(study)
    with no_survivors(study):
        process = study.start()
        wait_until(lambda: study.steps_under_way() or process.poll() is not None, process)
        time.sleep(moment.uniform(0, 8))
        process.kill()
        process.communicate()
    process = study.start()
    wait_until(lambda: study.steps_under_way() or process.poll() is not None, process)
    time.sleep(moment.uniform(0, 8))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    code, _, errors = study.run()
    assert code == 0, errors
    assert study.values() == pytest.approx(finished[0].values(), rel=1e-4)
    check_tracking(study, runs=3)


def test_a_failed_step_is_reported_in_one_line_with_its_exit_code(finished: Finished) -> None:
    """A sample set is damaged, and its metrics are gone."""
    study, _ = finished
    before = study.values()
    (part,) = study.root.glob("studies/digits/mini-b-2/samples/*40/*/part-00000.npz")
    (record,) = study.root.glob("studies/digits/mini-b-2/metrics/*40*.json")
    aside = record.rename(study.root / "aside")
    flip_bit(part)
    code, _, errors = study.run()
    flip_bit(part)
    aside.rename(record)
    assert code == FinalError.exit_code
    assert len([line for line in errors.splitlines() if line.startswith("dit: ")]) == 1
    assert errors.splitlines()[-1].startswith("dit: evaluate mini-")
    assert "Traceback" not in errors
    assert study.values() == before


def test_a_failure_stops_the_other_variants_which_can_resume(tmp_path: Path) -> None:
    """One variant cannot write its samples while the other is in training."""
    study = Study(tmp_path / "runs")
    blocked = study.root / "studies/digits/mini-s-2/samples"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder must be")
    with no_survivors(study):
        # Late enough that the other has a checkpoint, whichever starts first.
        late = ("train.steps=900", "evaluation.at_steps=[150, 900]")
        code, _, errors = study.run("variants=[mini-S/2, mini-XL/2]", *late)
    assert code == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("dit: ")]
    assert line.startswith("dit: sample mini-S/2 step 150: ")
    assert "Traceback" not in errors
    # Its training does not go on, either.
    assert not (study.root / "studies/digits/mini-s-2/train.json").exists()
    # The other variant wrote a checkpoint when it was stopped, and no record of a complete training.
    assert any(study.root.glob("studies/digits/mini-xl-2/checkpoints/*/meta.json"))
    assert not (study.root / "studies/digits/mini-xl-2/train.json").exists()
    wait_for_end_in_mlflow(study)


def test_a_variant_that_a_check_stops_ends_alone(tmp_path: Path) -> None:
    """The learning rate is possible for the smaller model only."""
    study = Study(tmp_path / "runs")
    code, output, errors = study.run(
        "train.learning_rate=0.028", "health={learning: off, pure-noise: off, samples: off}"
    )
    broke = "mini-B/2 broke before its first step: train.learning_rate=0.028 is too high for hidden size 40"
    assert code == FinalError.exit_code
    assert errors.splitlines()[-1].startswith(f"dit: {broke}")
    assert "the others go on" in output
    assert {name.split()[0] for name in study.values()} == {"mini-S/2"}
    assert broke in (study.root / "studies/digits/report/report.html").read_text()
    wait_for_end_in_mlflow(study)
    with closing(sqlite3.connect(study.root / "mlflow.db")) as database:
        query = "SELECT name, status, value FROM runs JOIN tags USING (run_uuid) WHERE key = 'health'"
        runs = {name: (status, value) for name, status, value in database.execute(query)}
        metrics = "SELECT name FROM runs JOIN latest_metrics USING (run_uuid) WHERE key = 'health/recipe'"
        assert {name for (name,) in database.execute(metrics)} == {"mini-S/2", "mini-B/2"}
    assert {name: status for name, (status, _) in runs.items()} == {
        "digits": "FINISHED",
        "mini-S/2": "FINISHED",
        "mini-B/2": "FAILED",
    }
    assert runs["mini-B/2"][1].startswith(broke)
    assert runs["digits"][1].startswith(broke)
    assert runs["mini-S/2"][1].startswith("healthy: ")


def test_more_seeds_reuse_the_first_and_each_is_as_if_trained_alone(tmp_path: Path) -> None:
    """One process trains several seeds, and each is as if it were trained alone."""
    study, alone = Study(tmp_path / "runs"), Study(tmp_path / "alone")
    small = ("variants=[mini-S/2]", "train.steps=20", "evaluation.at_steps=[20]", "fit.parallel_variants=1")
    code, _, errors = study.run(*small)
    assert code == 0, errors
    first = study.files("studies/digits/mini-s-2")
    code, output, errors = study.run(*small, "seeds=3")
    assert code == 0, errors
    assert {name: first[name] for name in first} == study.files("studies/digits/mini-s-2")
    with open(study.root / "studies/digits/report/runs.csv", newline="") as file:
        rows = [(row["variant"], row["seed"]) for row in csv.DictReader(file)]
    assert rows == [("mini-S/2", "0"), ("mini-S/2", "1"), ("mini-S/2", "2")]
    assert "8/8 report" in output

    code, _, errors = alone.run(*small, "train.seed=2")
    assert code == 0, errors
    (other,) = alone.root.glob("studies/digits/mini-s-2/metrics/*.json")
    ours = study.root / "studies/digits/mini-s-2-seed-2/metrics" / other.name
    for key in ("config_hash", "metrics", "train_seed"):
        assert json.loads(ours.read_bytes())[key] == json.loads(other.read_bytes())[key]
    with np.load(next(study.root.glob("studies/digits/mini-s-2/samples/*/*/part-00000.npz"))) as own:
        labels = own["labels"]
    for part in study.root.glob("studies/digits/mini-s-2-seed-*/samples/*/*/part-00000.npz"):
        with np.load(part) as samples:
            assert samples["labels"].tolist() == labels.tolist()


def test_a_killed_step_fails_the_study(tmp_path: Path) -> None:
    """As the kernel kills a process if memory runs out."""
    study = Study(tmp_path / "runs")
    process = study.start()
    wait_until(study.steps_under_way, process)
    for number in study.steps_under_way():
        os.kill(number, signal.SIGKILL)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("dit: ")
    assert str(study.root / "logs/digits.log") in errors
    assert "Traceback" not in errors
