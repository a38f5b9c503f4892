"""`python -m bench.replay`: the failed study on digits, with four of the faults that it may have had.

Each fault is a patch of the product, which then runs its own commands: first with all health checks off, as the study
was run, then with them. docs/the-failed-study.md explains the result.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bench.gates.faults import Fault, fed, frozen_ema
from bench.gates.sampling_faults import skipped_map, unloaded_weights
from dit.claims.judged import primary
from dit.claims.results import load_results
from dit.cli.commands import run
from dit.console import Cell, say, table
from dit.console.formatting import format_hours, format_share
from dit.errors import DitError, FinalError
from dit.health.log import read_events
from dit.health.summary import CHECKS
from dit.planning.cost import Plan, plan
from dit.results.stages import Work, dataset, samples
from dit.results.state import require
from dit.storage import open_store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import HealthEvent
from dit.study.study_file import load

CONFIGS = Path(__file__).parents[1] / "configs"
VARIANT = "mini-S/2"
STAGES = ("train", "sample", "evaluate")
SCALE = 0.18215
"""Scale factor of Stable Diffusion's autoencoder."""
SETTINGS = (
    "study=replay",
    f"variants=[{VARIANT}]",
    "train.ema_decay=0.98",
    "evaluation.resamples=50",
    "fit.threads=1",
    "tracking.kind=none",
)


@dataclass(frozen=True)
class Case:
    """A fault of the study."""

    name: str
    fault: Fault
    stages: Sequence[str]
    """Those in which the product is patched."""
    harms_training: bool = False
    """Whether the trained weights differ from healthy ones."""


CASES = (
    Case("EMA never updated", frozen_ema, ("train",), harms_training=True),
    Case(
        "Scale factor forgotten",
        fed(lambda batch: replace(batch, x0_NCHW=batch.x0_NCHW / SCALE)),
        ("train",),
        harms_training=True,
    ),
    Case("Weights not loaded", unloaded_weights, ("sample",)),
    Case("Timestep map skipped", skipped_map, ("train", "sample")),
)


@dataclass(frozen=True)
class Seen:
    """What the authors of a study see without health checks."""

    loss: float
    """Of the last steps."""
    std: float
    """Standard deviation of the sampled values, before they are clipped."""
    distance: float
    """Fréchet distance of the samples in the features of the digits' classifier."""
    noise: float
    """That of noise."""


@dataclass(frozen=True)
class Row:
    """A fault, what is seen of it without the checks, and the reading that stops it."""

    case: Case
    seen: Seen
    event: HealthEvent
    their_step: int
    """Steps that all models of the failed study would have trained by then."""


class Replay:
    """Runs the cases below a folder, for so many training steps and samples."""

    def __init__(self, folder: Path, steps: int, samples: int) -> None:
        self._folder = folder
        self._settings = (
            *SETTINGS,
            f"train.steps={steps}",
            f"evaluation.at_steps=[{steps}]",
            f"sampling.num_samples={samples}",
        )

    def healthy(self) -> Seen:
        """Run the study without a fault.

        Raises DitError when a command fails or a health check warns or stops.
        """
        root = self._folder / "healthy"
        if not root.exists():
            for stage in ("prepare", *STAGES):
                self._command(stage, root)
        return self._seen(root)

    def broken(self, case: Case, failed: StudyConfig) -> Row:
        """Run a case without the health checks, then with them.

        Raises DitError when a command fails for another reason, or no check stops it.
        """
        off = tuple(f"health.{check}=off" for check in _names())
        unwatched = self._copy(case, "unwatched", trained=not case.harms_training)
        for stage in STAGES:
            with _patched(case, stage):
                self._command(stage, unwatched, *off)
        watched = self._copy(case, "watched", trained="train" not in case.stages)
        for stage in case.stages:
            with _patched(case, stage):
                code = self._command(stage, watched, allowed=(0, FinalError.exit_code))
            if code:
                break
        events = [event for event in self._events(watched) if event.action == "stop"]
        if not events:
            raise DitError(f"replay: no health check stopped {case.name!r}; see {self._folder / 'replay.log'}")
        sampled = failed.evaluation.at_steps[0] if stage == "sample" else events[0].step
        return Row(case, self._seen(unwatched), events[0], sampled)

    def real_std(self) -> float:
        """Return the standard deviation of the dataset's values."""
        work = Work(self._config(), open_store(str(self._folder / "healthy")))
        return require(work, dataset(work)).latents.std[0]

    def _copy(self, case: Case, name: str, *, trained: bool) -> Path:
        """A copy of the healthy root with its dataset, and with its training if it is as healthy."""
        root = self._folder / f"{case.name.lower().replace(' ', '-')}-{name}"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self._folder / "healthy", root)
        config = self._config()
        folder = root / layout.variant(config, config.runs[0])
        if not trained:
            shutil.rmtree(folder)
            return root
        for part in ("samples", "metrics"):
            shutil.rmtree(folder / part)
        (root / layout.health(config, config.runs[0])).unlink()
        return root

    def _command(self, stage: str, root: Path, *settings: str, allowed: Iterable[int] = (0,)) -> int:
        overrides = [word for setting in (*self._settings, *settings) for word in ("--set", setting)]
        variant = [] if stage == "prepare" else ["--variant", VARIANT]
        log = self._folder / "replay.log"
        with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            code = run([stage, str(CONFIGS / "digits.yaml"), *variant, "--root", str(root), *overrides])
        if code not in allowed:
            raise DitError(f"replay: dit {stage} below {root} ended with exit code {code}; see {log}")
        return code

    def _config(self) -> StudyConfig:
        return load(CONFIGS / "digits.yaml", self._settings)

    def _events(self, root: Path) -> list[HealthEvent]:
        config = self._config()
        return read_events(open_store(str(root)), layout.health(config, config.runs[0]))

    def _seen(self, root: Path) -> Seen:
        config, store = self._config(), open_store(str(root))
        (variant,) = load_results(config, store).variants
        work, record = Work(config, store), variant.metrics[-1]
        drawn = require(work, samples(work, variant.run, record.step))
        return Seen(variant.train.final_loss, drawn.latent_std[0], primary(record).value, record.noise_floor)


def gpu_hours(planned: Plan, steps: int, total: int) -> float:
    """GPU-hours that all models of a plan train until this step of `total`."""
    return planned.count * planned.train_hours * steps / total


def show(healthy: Seen, real_std: float, rows: Sequence[Row], failed: StudyConfig) -> None:
    """Print what was seen, which check spoke, and what the fault would have cost until then."""
    planned = plan(failed)
    whole = planned.count * planned.hours
    cells: list[list[Cell]] = [["none", *_cells(healthy), None, None, None, None]]
    for row in rows:
        spent = gpu_hours(planned, row.their_step, failed.train.steps)
        where = f"step {row.their_step:,}" if row.their_step else "before step 1"
        cells.append(
            [
                row.case.name,
                *_cells(row.seen),
                row.event.check,
                where,
                format_hours(spent),
                f"{100 * spent / whole:.2g} %",
            ]
        )
    columns = ["Fault", "Final loss", "Std of samples", "Distance", "Check", "All four models at", "GPU time", "Share"]
    title = f"std of real images {real_std:.4g}, Fréchet distance of noise {healthy.noise:.4g}"
    table(columns, cells, title=f"The failed study on digits, {VARIANT}: {title}")
    say()
    for row in rows:
        say(f"{row.case.name}: dit: {row.event.message}")
    say()
    say(
        f"GPU time: {failed.study} on {planned.count} x {planned.accelerator.name}, {format_hours(whole)} in all"
        " (dit plan). A fault of sampling costs what four models train until the first sampled checkpoint."
    )


def _cells(seen: Seen) -> list[Cell]:
    return [seen.loss, seen.std, seen.distance]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(prog="python -m bench.replay", description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder of the runs; unset: a temporary one")
    parser.add_argument("--steps", type=int, default=400, help="training steps of each run")
    parser.add_argument("--samples", type=int, default=400, help="images of each sample set")
    parser.add_argument("--only", default="", help="only faults whose name contains this text")
    chosen = parser.parse_args(arguments)
    cases = [case for case in CASES if chosen.only.lower() in case.name.lower()]
    if not cases:
        parser.error(f"--only={chosen.only!r}: known faults are {', '.join(case.name for case in CASES)}")
    failed = load(CONFIGS / "imagenet256-52k.yaml", [])
    with contextlib.ExitStack() as stack:
        folder = chosen.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dit-replay-")))
        folder.mkdir(parents=True, exist_ok=True)
        replay = Replay(folder, chosen.steps, chosen.samples)
        try:
            say(f"a healthy run; output in {folder / 'replay.log'}")
            healthy, rows = replay.healthy(), []
            for number, case in enumerate(cases, 1):
                say(f"{format_share(number, len(cases), 'faults')}: {case.name}")
                rows.append(replay.broken(case, failed))
        except DitError as error:
            # The log goes with a temporary folder.
            sys.exit(f"{error}" if chosen.folder else f"{error}; keep it with --folder")
        say()
        show(healthy, replay.real_std(), rows, failed)


def _names() -> tuple[str, ...]:
    # A value that is not finite always stops.
    return tuple(name for name in CHECKS if name != "finite")


@contextlib.contextmanager
def _patched(case: Case, stage: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if stage in case.stages:
            case.fault(patch)
        yield


if __name__ == "__main__":
    main()
