"""The command line: read the study file, open the store, call one stage.

Every command imports its stage when it runs, so that help and mistakes in a study file are answered at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dit.cli.options import Experiment, Overrides, Root, RunId, Step, Study, Variants, Watch, parse_part
from dit.cli.plugins import orchestrator
from dit.console.program import INTERRUPTED
from dit.errors import ConfigError, DitError, one_line

if TYPE_CHECKING:
    from dit.storage import Store
    from dit.study.config import StudyConfig

app = typer.Typer(
    name="dit",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _dit(context: typer.Context) -> None:
    """Measures how diffusion transformers scale: from images to a verdict with its uncertainty.

    A study is a YAML file. Each command is one stage of it: it finds what the stages before it wrote below --root,
    goes on where it was interrupted, and returns at once when its result is complete.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def plan(study: Study, overrides: Overrides = None) -> None:
    """Print parameters, Gflops, compute, memory and hours of every variant; writes nothing.

    [bold]Examples[/]

    \b
      dit plan configs/imagenet256.yaml
      dit plan configs/imagenet256.yaml --set plan.count=16
    """
    config = _load(study, overrides)
    from dit.report.tables import show_plan

    show_plan(config)


@app.command()
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
    restarted; --merge then checks that nothing is missing or double.

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


@app.command()
def train(study: Study, variants: Variants = None, overrides: Overrides = None, root: Root = "runs") -> None:
    """Train to the last step; an interrupted training goes on from its newest checkpoint.

    [bold]Examples[/]

    \b
      dit train configs/digits.yaml --variant mini-S/2
      dit train configs/digits.yaml --set train.seed=1 --root /tmp/other
      torchrun --nproc-per-node 8 -m dit train configs/imagenet256.yaml
    """
    config, store = _open(study, overrides, root)
    chosen = _variants(config, variants)
    from dit.report.tables import say_trained
    from dit.stages import train as stage

    is_first = os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"
    for variant in chosen:
        record = stage.run(config, store, variant)
        if is_first:
            say_trained(record)


@app.command()
def sample(
    study: Study,
    variants: Variants = None,
    step: Step = None,
    export_adm: Annotated[
        Path | None,
        typer.Option("--export-adm", metavar="FILE", help="Write the samples as the ADM evaluator's npz, too."),
    ] = None,
    overrides: Overrides = None,
    root: Root = "runs",
) -> None:
    """Draw the sample sets of the evaluated checkpoints: the same noise and labels for every variant.

    [bold]Examples[/]

    \b
      dit sample configs/digits.yaml --variant mini-XL/2 --step 800
      dit sample my.yaml --variant mini-XL/2 --step 800 --export-adm xl2.npz
      torchrun --nproc-per-node 8 -m dit sample configs/imagenet256.yaml
    """
    config, store = _open(study, overrides, root)
    chosen = _variants(config, variants)
    if export_adm and (len(chosen) != 1 or step is None):
        raise ConfigError("--export-adm writes one sample set; name it with one --variant and --step")
    from dit.stages import sample as stage

    for variant in chosen:
        stage.run(config, store, variant, step, export_adm)


@app.command()
def evaluate(
    study: Study,
    variants: Variants = None,
    step: Step = None,
    overrides: Overrides = None,
    root: Root = "runs",
) -> None:
    """Measure the sample sets against the reference, with bootstrap intervals.

    [bold]Examples[/]

    \b
      dit evaluate configs/digits.yaml
      dit evaluate configs/digits.yaml --variant mini-XL/2 --step 800
    """
    config, store = _open(study, overrides, root)
    chosen = _variants(config, variants)
    from dit.stages import evaluate as stage

    for variant in chosen:
        stage.run(config, store, variant, step)


@app.command()
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


@app.command("study")
def run_study(study: Study, overrides: Overrides = None, root: Root = "runs") -> None:
    """Run the whole study on this machine, all stages of all variants, and print the verdict.

    [bold]Examples[/]

    \b
      dit study configs/digits.yaml
      dit study configs/digits.yaml --set train.steps=400 --root /tmp/quick
    """
    _load(study, overrides)
    orchestrator("local")(study, root, overrides or [])


@app.command()
def status(
    study: Study,
    run: RunId = None,
    experiment: Experiment = "dit",
    watch: Watch = False,
    overrides: Overrides = None,
    root: Root = "runs",
) -> None:
    """Show how far a study is: steps of its pipeline run, jobs, pods, training steps done, the newest metrics.

    Asks Kubeflow Pipelines at KFP_ENDPOINT, the cluster of KUBECONFIG and the store; says what it could not reach.

    [bold]Examples[/]

    \b
      dit status configs/imagenet256.yaml --root s3://bucket/dit --watch
    """
    _load(study, overrides)
    orchestrator("status")(study, root, overrides or [], run, experiment, watch)


@app.command()
def show(study: Study, overrides: Overrides = None) -> None:
    """Print the whole study file, every default spelled out.

    [bold]Examples[/]

    \b
      dit show configs/digits.yaml
      dit show configs/digits.yaml --set train.steps=100
    """
    typer.echo(_load(study, overrides).to_yaml(), nl=False)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The public .pt file.", show_default=False)],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="The safetensors file to write.", show_default=False)
    ],
    variant: Annotated[str, typer.Option("--variant", metavar="NAME", help="The model it holds.")] = "DiT-XL/2",
) -> None:
    """Convert a public checkpoint (weights only) to safetensors; every name and shape must match.

    [bold]Examples[/]

    \b
      dit convert DiT-XL-2-256x256.pt DiT-XL-2-256x256.safetensors
    """
    from dit.checkpoints.convert import convert_official

    convert_official(checkpoint, output, variant)


def _load(study: Path, overrides: list[str] | None) -> StudyConfig:
    from dit.study.study_file import load

    return load(study, overrides or [])


def _open(study: Path, overrides: list[str] | None, root: str) -> tuple[StudyConfig, Store]:
    config = _load(study, overrides)
    from dit.storage import open_store

    return config, open_store(root)


def _variants(config: StudyConfig, names: list[str] | None) -> list[str]:
    """The named variants, or all; ConfigError for one that the study does not have."""
    return [config.spec(name).name for name in names] if names else list(config.variants)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; what the user can mend is one line on stderr."""
    message = "interrupted; the same command goes on where it stopped"
    try:
        # typer turns KeyboardInterrupt into its exit code.
        code = int(app(arguments, prog_name="dit", standalone_mode=False) or 0)
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
