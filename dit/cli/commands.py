"""The `dit` command: one command per stage; the tools and the platform add theirs.

A stage's command reads the study file, opens the store and calls the stage. Commands import their modules only when
they run: help, and errors in a study file, must not wait for torch.

Example:
    exit_code = run(["train", "configs/digits.yaml", "--variant", "mini-S/2"])
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dit.cli.options import STAGES, Overrides, Root, Seeds, Step, Study, Variants, load_study, parse_labels, parse_part
from dit.cli.tools import tools
from dit.errors import ConfigError, DitError, one_line

if TYPE_CHECKING:
    from dit.storage import Store
    from dit.study.config import StudyConfig
    from dit.study.runs import Run

PLATFORM_COMMANDS = "dit.commands"
"""Group of entry points for the platform's commands, because `dit` does not import `pipelines`."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as in a shell."""

app = typer.Typer(
    name="dit",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _dit(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and the commit it was built from.")
    ] = False,
) -> None:
    """Measures how diffusion transformers scale: from images to a verdict with its uncertainty.

    A study is a YAML file. Each stage reads the results of earlier stages below --root, resumes after an interruption,
    and returns at once when its own result is complete.
    """
    if version:
        from dit.study.version import code_version

        typer.echo(f"dit {code_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(rich_help_panel=STAGES)
def prepare(
    study: Study,
    part: Annotated[
        str | None, typer.Option(metavar="K/N", help="Only the K-th of N equal shares of the shards.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Only join finished parts into the manifest.")] = False,
    overrides: Overrides = None,
    root: Root = "runs",
) -> None:
    """Turn the source's images into shards and a manifest.

    Without --part it does all of the work. With it, parts may run on different machines, in any order, and be
    restarted; --merge then checks that nothing is missing or duplicate.

    [bold]Examples[/]

    \b
      dit prepare configs/digits.yaml
      dit prepare configs/imagenet256.yaml --root s3://bucket/dit --part 3/16
      dit prepare configs/imagenet256.yaml --root s3://bucket/dit --merge
    """
    share = parse_part(part) if part is not None else None
    if share and merge:
        raise ConfigError("--part and --merge are two steps; run the parts first, then --merge alone")
    config, store = _open(study, overrides, root)
    from dit.stages import prepare as stage

    if merge:
        stage.merge(config, store)
    else:
        stage.run(config, store, part=share, merge=share is None)


@app.command(rich_help_panel=STAGES)
def train(
    study: Study,
    variants: Variants = None,
    seeds: Seeds = None,
    until: Annotated[
        int | None,
        typer.Option("--until", min=1, metavar="STEP", help="Stop after this evaluated step. Unset: the last step."),
    ] = None,
    overrides: Overrides = None,
    root: Root = "runs",
) -> None:
    """Train to the last step; an interrupted training resumes from its newest checkpoint.

    [bold]Examples[/]

    \b
      dit train configs/digits.yaml --variant mini-S/2
      dit train configs/digits.yaml --until 500
      dit train my.yaml --variant mini-S/2 --seed 1
      dit train configs/digits.yaml --set train.seed=1 --root /tmp/other
      torchrun --nproc-per-node 8 -m dit train configs/imagenet256.yaml
    """
    config, store = _open(study, overrides, root)
    chosen = _runs(config, variants, seeds)
    from dit.report.tables import say_trained
    from dit.stages import train as stage

    is_first = os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"
    for run in chosen:
        record = stage.run_until(config, store, run.name, until) if until else stage.run(config, store, run.name)
        if is_first:
            say_trained(run, record)


@app.command(rich_help_panel=STAGES)
def sample(
    study: Study,
    variants: Variants = None,
    seeds: Seeds = None,
    step: Step = None,
    export_adm: Annotated[
        Path | None,
        typer.Option("--export-adm", metavar="FILE", help="Write the samples as the ADM evaluator's npz, too."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="N,N,...", help="Draw only a picture of these classes, one sample each."),
    ] = None,
    overrides: Overrides = None,
    root: Root = "runs",
) -> None:
    """Draw the sample sets of the evaluated checkpoints: the same noise and labels for every variant.

    [bold]Examples[/]

    \b
      dit sample configs/digits.yaml --variant mini-XL/2 --step 1500
      dit sample my.yaml --variant mini-XL/2 --step 1500 --export-adm xl2.npz
      dit sample my.yaml --variant mini-XL/2 --step 1500 --labels 2,3,5
      torchrun --nproc-per-node 8 -m dit sample configs/imagenet256.yaml
    """
    config, store = _open(study, overrides, root)
    chosen = _runs(config, variants, seeds)
    named = "one --variant" if len(config.train_seeds) == 1 else "one --variant, one --seed"
    if export_adm and (len(chosen) != 1 or step is None):
        raise ConfigError(f"--export-adm writes one sample set; name it with {named} and --step")
    classes = parse_labels(labels) if labels is not None else None
    if classes is not None and (len(chosen) != 1 or step is None or export_adm):
        raise ConfigError(f"--labels draws from one checkpoint; name it with {named} and --step")
    from dit.stages import sample as stage

    if classes is not None and step is not None:
        stage.draw_labels(config, store, chosen[0].name, step, classes)
        return
    for run in chosen:
        stage.run(config, store, run.name, step, export_adm)


@app.command(rich_help_panel=STAGES)
def evaluate(
    study: Study,
    variants: Variants = None,
    seeds: Seeds = None,
    step: Step = None,
    overrides: Overrides = None,
    root: Root = "runs",
) -> None:
    """Measure the sample sets against the reference, with bootstrap intervals.

    [bold]Examples[/]

    \b
      dit evaluate configs/digits.yaml
      dit evaluate configs/digits.yaml --variant mini-XL/2 --step 1500
    """
    config, store = _open(study, overrides, root)
    chosen = _runs(config, variants, seeds)
    from dit.stages import evaluate as stage

    for run in chosen:
        stage.run(config, store, run.name, step)


@app.command(rich_help_panel=STAGES)
def report(study: Study, overrides: Overrides = None, root: Root = "runs") -> None:
    """Judge the paper's claims and write report.html, runs.csv and verdict.json.

    [bold]Examples[/]

    \b
      dit report configs/digits.yaml
      dit report configs/imagenet256.yaml --root s3://bucket/dit
    """
    config, store = _open(study, overrides, root)
    from dit.report.tables import show_results
    from dit.stages import report as stage

    stage.run(config, store)
    show_results(config, store)


def _open(study: Path, overrides: list[str] | None, root: str) -> tuple[StudyConfig, Store]:
    config = load_study(study, overrides)
    from dit.storage import open_store

    return config, open_store(root)


def _runs(config: StudyConfig, names: list[str] | None, seeds: list[int] | None) -> list[Run]:
    """The runs of the named variants, or of all, with these seeds, or all.

    Raises ConfigError for a variant or a seed that the study does not have.
    """
    chosen = [(name, seed) for name in names or config.variants for seed in seeds or (None,)]
    return [run for name, seed in chosen for run in config.runs_of(name, seed)]


@cache
def _program() -> typer.Typer:
    """The command with all installed commands, in the order of its help."""
    platform = [entry.load() for entry in entry_points(group=PLATFORM_COMMANDS)]
    for commands in (*platform, tools):
        app.add_typer(commands)
    return app


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code. An error that the user can correct is one line on stderr."""
    message = "interrupted; run the same command again to resume"
    try:
        # typer turns KeyboardInterrupt into its exit code.
        code = int(_program()(arguments, prog_name="dit", standalone_mode=False) or 0)
        if code != INTERRUPTED:
            return code
    except DitError as error:
        message, code = str(error), error.exit_code
    except typer.TyperException as error:
        message, code = f"{error.format_message().rstrip('.')}; try 'dit --help'", error.exit_code
    rank = f" (rank {os.environ.get('RANK', '0')})" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    typer.echo(f"dit: {one_line(message)}{rank}", err=True)
    return code


def main() -> None:
    """Entry point of the `dit` command."""
    sys.exit(run(sys.argv[1:]))
