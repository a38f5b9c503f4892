"""Arguments and options that several commands share, and the panels of `dit --help`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dit.errors import ConfigError

if TYPE_CHECKING:
    from dit.study.config import StudyConfig
    from dit.study.runs import Run

STAGES, STUDIES, CLUSTER, TOOLS = "Stages", "Whole studies", "Cluster", "Tools"

Study = Annotated[
    Path,
    typer.Argument(metavar="STUDY", help="Study file, such as configs/digits.yaml.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the study file. Repeatable.", show_default=False),
]
Root = Annotated[
    str,
    typer.Option("--root", metavar="ADDRESS", envvar="DIT_ROOT", help="Store of all results: a folder or s3://..."),
]
Variants = Annotated[
    list[str] | None,
    typer.Option("--variant", metavar="NAME", help="Only this variant. Repeatable. Unset: all, in order."),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seed", min=0, metavar="N", help="Only this training seed. Repeatable. Unset: all of the study."),
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, metavar="N", help="Training seed, of a study that has several.")
]
Variant = Annotated[
    str | None,
    typer.Option(
        "--variant", metavar="NAME", help="The model it holds. Unset: by its tensors, or the study's only one."
    ),
]
Step = Annotated[
    int | None,
    typer.Option("--step", min=1, help="Only this checkpoint. Unset: all of evaluation.at_steps."),
]
Port = Annotated[int, typer.Option("--port", help="Port to listen on; the next free one if it is taken.")]


def load_study(study: Path, overrides: list[str] | None) -> StudyConfig:
    """The study with its overrides. Raises as `study_file.load`."""
    from dit.study.study_file import load

    return load(study, overrides or [])


def only_run(config: StudyConfig, variant: str, seed: int | None) -> Run:
    """The run of a variant and seed.

    Raises ConfigError when the study does not have it, or has several seeds and none is given.
    """
    runs = config.runs_of(variant, seed)
    if len(runs) > 1:
        seeds = ", ".join(str(run.seed) for run in runs)
        raise ConfigError(f"{runs[0].spec.name} has several seeds, {seeds}; choose one, such as --seed {runs[0].seed}")
    return runs[0]


def parse_part(text: str) -> tuple[int, int]:
    """(3, 16) for `3/16`.

    Raises ConfigError unless it reads K/N with 1 <= K <= N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(f"--part {text}: must read K/N with 1 <= K <= N, such as --part 3/16")
    return number, count


def parse_labels(text: str) -> list[int]:
    """[207, 360] for `207,360`.

    Raises ConfigError unless it is numbers of classes, separated by commas.
    """
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ConfigError(f"--labels {text}: must be numbers of classes with commas between, such as --labels 207,360")
    return [int(label) for label in text.split(",")]
