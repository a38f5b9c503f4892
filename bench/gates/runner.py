"""Runs the tables, two at a time, and keeps each outcome: a second start runs what is missing."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from bench.gates import latents
from bench.gates.child import Command, execute
from bench.gates.healthy import Healthy
from bench.gates.table import BUDGET, SAMPLED, Case, Data
from dit.health.log import read_events
from dit.storage import open_store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import HealthEvent
from dit.study.study_file import load

ROOT = Path(__file__).parents[2]
VARIANT = "mini-S/2"
COMMON = ("tracking.kind=none", "fit.threads=1")
PATIENCE = 900
"""Seconds after which a run is ended: many times what the slowest needs."""

OUTPUT = "output"
"""Folder of a run's output, beside its results."""

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Launch:
    """A command of the product, as one process or one for each rank."""

    data: Data
    root: Path
    verb: str
    settings: Sequence[str]
    variant: str = VARIANT
    ranks: int = 1
    odd: Sequence[str] = ()
    """Settings of all ranks but the first."""
    case: str = ""
    """Name of the fault; empty for a healthy run."""


def code_hash() -> str:
    """Return a hash of the product and of these tables, by which outcomes are kept."""
    files = sorted([*(ROOT / "dit").rglob("*.py"), *Path(__file__).parent.glob("*.py")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


class Runner:
    """The runs below a folder."""

    def __init__(self, folder: Path, say: Callable[[str], object]) -> None:
        self.folder, self._say = folder, say
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["bench.gates.child"])
        self._lock = Lock()
        folder.mkdir(parents=True, exist_ok=True)
        # Libraries read it when they are imported, in the process from which all others are forked.
        os.environ["OMP_NUM_THREADS"] = "1"

    @property
    def _record(self) -> Path:
        return self.folder / "outcomes.jsonl"

    def outcomes(self) -> dict[str, Outcome]:
        """Return the outcomes so far, by key."""
        if not self._record.exists():
            return {}
        rows = [json.loads(line) for line in self._record.read_text().splitlines()]
        return {row["key"]: row for row in rows}

    def run(self, jobs: Sequence[tuple[str, Callable[[], Outcome]]], processes: int) -> None:
        """Run the jobs that have no outcome yet."""
        done = self.outcomes()
        todo = [(key, job) for key, job in jobs if key not in done]

        def finish(numbered: tuple[int, tuple[str, Callable[[], Outcome]]]) -> None:
            number, (key, job) = numbered
            outcome = {"key": key, **job()}
            with self._lock:
                with self._record.open("a") as file:
                    file.write(json.dumps(outcome) + "\n")
                self._say(f"[{number} of {len(todo)}] {key}: {outcome['problem'] or 'ok'}")

        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(finish, enumerate(todo, 1)))

    def prepare(self, data: Iterable[Data]) -> None:
        """Make the healthy runs from which faulty ones start."""
        for name in data:
            for stage in ("prepared", "trained", "sampled"):
                self._base(name, stage)

    def study_file(self, data: Data) -> Path:
        """Return the study of digits, or the one of latents, which is written here."""
        if data == "digits":
            return ROOT / "configs" / "digits.yaml"
        path = self.folder / "latents.yaml"
        if not path.exists():
            path.write_text(latents.STUDY.format(root=self.folder / "inputs"))
        return path

    def _base(self, data: Data, stage: str) -> Path:
        folder = self.folder / "bases" / f"{data}-{stage}"
        if (folder / "complete").exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        before = {"trained": "prepared", "sampled": "trained"}.get(stage)
        if before:
            shutil.copytree(self._base(data, before), folder)
        verb = {"prepared": "prepare", "trained": "train", "sampled": "sample"}[stage]
        self._say(f"{data}: {verb}")
        if data == "latents" and stage == "prepared":
            latents.save_autoencoder(self.folder / "inputs" / "autoencoder")
            latents.write(open_store(str(folder)), self._config(data, ()))
        code = self._start(Launch(data, folder, verb, self._settings(data)))[0]
        if code:
            raise SystemExit(f"gates: a healthy `dit {verb}` of {data} ended with code {code}: {folder / OUTPUT}")
        (folder / "complete").touch()
        return folder

    def _settings(self, data: Data) -> tuple[str, ...]:
        step = SAMPLED[data]
        return (f"train.steps={step}", f"evaluation.at_steps=[{step}]", "sampling.num_samples=20")

    def _config(self, data: Data, settings: Iterable[str]) -> StudyConfig:
        return load(self.study_file(data), [*COMMON, *settings])

    def _start(self, launch: Launch) -> list[int]:
        """Run a command as one process or one for each rank; return their exit codes."""
        port, processes = _free_port(), []
        for rank in range(launch.ranks):
            mine = [*COMMON, *launch.settings, *(launch.odd if rank else ())]
            arguments = [launch.verb, str(self.study_file(launch.data)), "--root", str(launch.root)]
            arguments += [] if launch.verb == "prepare" else ["--variant", launch.variant]
            arguments += [word for setting in mine for word in ("--set", setting)]
            environment = {"DIT_COLLECTIVE_TIMEOUT": "60"}
            if launch.ranks > 1:
                environment |= {"RANK": str(rank), "WORLD_SIZE": str(launch.ranks)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            command = Command(arguments, environment, launch.root / OUTPUT, launch.case, f"{launch.verb}-{rank}")
            process = self._context.Process(target=execute, args=(command,))
            process.start()
            processes.append(process)
        codes = []
        for process in processes:
            # A rank that stands still is ended once the others have ended.
            process.join(PATIENCE if not codes else 30)
            if process.is_alive():
                process.kill()
                process.join()
            codes.append(process.exitcode if process.exitcode is not None else -1)
        return codes

    def broken(self, case: Case, data: Data) -> Outcome:
        """Run a faulty command; return what spoke, and what is wrong with it."""
        base = {"train": "prepared", "resume": "trained", "sample": "trained", "evaluate": "sampled"}.get(case.stage)
        root = self._fresh(f"broken/{data}/{slug(case.name)}", self._base(data, base) if base else None)
        settings = [*self._settings(data), *case.settings]
        if case.stage == "resume":
            settings.append(f"train.steps={SAMPLED[data] + 10}")
        if case.stage == "prepare" and data == "latents":
            latents.write(open_store(str(root)), self._config(data, ()), damaged=True)
        verb = "train" if case.stage == "resume" else case.stage
        codes = self._start(Launch(data, root, verb, settings, ranks=case.ranks, odd=case.odd, case=case.name))
        config = self._config(data, settings)
        study_run = None if case.stage == "prepare" else config.run(VARIANT)
        events = read_events(open_store(str(root)), layout.health(config, study_run))
        outcome = _judge(case, data, codes, [event for event in events if event.action != "ok"])
        shutil.rmtree(root / "datasets", ignore_errors=True)
        return outcome

    def healthy(self, run: Healthy) -> Outcome:
        """Train and sample; return every alarm, and each check's readings."""
        root = self._fresh(f"healthy/{slug(run.name)}", self._base(run.data, "prepared"))
        output, codes = root / OUTPUT, []
        settings = list(run.overrides())
        ends = [run.resumed, run.steps] if run.resumed else [run.steps]
        for number, end in enumerate(ends):
            until = [f"train.steps={end}", f"evaluation.at_steps=[{end}]"]
            ranks = run.resumed_ranks if number else run.ranks
            codes += self._start(Launch(run.data, root, "train", [*settings, *until], run.variant, ranks))
        codes += self._start(Launch(run.data, root, "sample", settings, run.variant))
        config = self._config(run.data, settings)
        events = read_events(open_store(str(root)), layout.health(config, config.run(run.variant)))
        alarms = [f"{event.check} at step {event.step}: {event.message}" for event in events if event.action != "ok"]
        problem = "; ".join(alarms) or ("" if not any(codes) else f"exit codes {codes}, see {output}")
        lines = (output / "readings.jsonl").read_text().splitlines()
        shutil.rmtree(root / "datasets", ignore_errors=True)
        return {"problem": problem, "readings": [json.loads(line) for line in lines]}

    def _fresh(self, name: str, base: Path | None) -> Path:
        root = self.folder / name
        shutil.rmtree(root, ignore_errors=True)
        if base is None:
            root.mkdir(parents=True)
        else:
            shutil.copytree(base, root, ignore=shutil.ignore_patterns(OUTPUT, "complete"))
        return root


def _judge(case: Case, data: Data, codes: list[int], failed: list[HealthEvent]) -> Outcome:
    first = failed[0] if failed else None
    problem = ""
    if first is None:
        problem = f"no check spoke; exit codes {codes}"
    elif first.check != case.check or not re.search(case.cause, first.message):
        problem = f"named by {first.check} at step {first.step}: {first.message}"
    elif first.action != case.action:
        problem = f"{first.check} says {first.action}, not {case.action}"
    elif case.stage == "train" and first.step > case.last:
        problem = f"named at step {first.step}, later than step {case.last}"
    elif case.action == "stop" and codes[0] != 3:
        problem = f"exit codes {codes} instead of 3"
    shown = first.model_dump() if first else {}
    trained = SAMPLED[data] if case.stage in ("sample", "evaluate", "resume") else 0
    return {**shown, "codes": codes, "problem": problem, "share": max(0, shown.get("step", 0) - trained) / BUDGET[data]}


def slug(name: str) -> str:
    """Return a name as one word."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
