"""Commands beside the stages: costs of a study, its whole file, all keys, MLflow, conversion of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit.cli.options import TOOLS, Overrides, Port, Root, Study, load_study
from dit.console import say

tools = typer.Typer()


@tools.command(rich_help_panel=TOOLS)
def plan(study: Study, overrides: Overrides = None) -> None:
    """Print parameters, Gflops, compute, memory and hours of every variant; writes nothing.

    Warns of a recipe with which no model can be healthy.

    [bold]Examples[/]

    \b
      dit plan configs/imagenet256.yaml
      dit plan configs/imagenet256.yaml --set plan.count=16
    """
    config = load_study(study, overrides)
    from dit.health.recipe import warnings
    from dit.planning.tables import show_plan

    show_plan(config)
    for line in warnings(config):
        say(f"warning: {line}")


@tools.command(rich_help_panel=TOOLS)
def show(study: Study, overrides: Overrides = None) -> None:
    """Print the whole study file, every default spelled out.

    [bold]Examples[/]

    \b
      dit show configs/digits.yaml
      dit show configs/digits.yaml --set train.steps=100
    """
    typer.echo(load_study(study, overrides).to_yaml(), nl=False)


@tools.command(rich_help_panel=TOOLS)
def keys(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="A key or section. Unset: all.", show_default=False)
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Rewrite the tables of docs/study-file.md.")
    ] = None,
) -> None:
    """Print the keys of a study file: type, default and meaning.

    [bold]Examples[/]

    \b
      dit keys
      dit keys train
      dit keys sampling.cfg_scale
    """
    from dit.study.key_reference import lines, rewrite

    if page is not None:
        rewrite(page)
        return
    for line in lines(key):
        typer.echo(line)


@tools.command(rich_help_panel=TOOLS)
def ui(
    root: Root = "runs",
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Port = 5000,
) -> None:
    """Open MLflow on the results below a root, until Ctrl-C.

    [bold]Examples[/]

    \b
      dit ui
      dit ui --root /tmp/quick --port 5001
    """
    from dit.console import say
    from dit.tracking.mlflow_ui import serve, server_command

    address, command = server_command(root, host, port)
    say("MLflow starts; this takes some seconds")
    raise typer.Exit(serve(address, command))


@tools.command(rich_help_panel=TOOLS)
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The .pt or .safetensors file.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="The safetensors file to write.", show_default=False)
    ],
    variant: Annotated[str, typer.Option("--variant", metavar="NAME", help="The model it holds.")] = "DiT-XL/2",
) -> None:
    """Convert a checkpoint of another program (weights only) to safetensors; prefixes of wrappers are removed.

    [bold]Examples[/]

    \b
      dit convert DiT-XL-2-256x256.pt DiT-XL-2-256x256.safetensors
    """
    from dit.checkpoints.convert import convert_official

    convert_official(checkpoint, output, variant)
