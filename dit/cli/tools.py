"""Commands beside the stages: costs of a study, its whole file, all keys, MLflow, the doctor, import of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit.cli.options import TOOLS, Overrides, Port, Root, Seed, Study, Variant, load_study, only_run
from dit.console import say
from dit.errors import ConfigError

tools = typer.Typer()


@tools.command(rich_help_panel=TOOLS)
def plan(
    study: Study,
    overrides: Overrides = None,
    root: Root = "runs",
    like: Annotated[
        Path | None,
        typer.Option("--like", metavar="STUDY", help="Earlier study whose results below --root tell what to expect."),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", min=0, metavar="PRICE", help="Price of a GPU-hour, for plan.price.")
    ] = None,
) -> None:
    """Print what a study costs, and which claims it can decide with which probability; writes nothing.

    What to expect is known from the results of the same study below --root, as its file stands, or from the paper's
    numbers. Warns of a recipe with which no model can be healthy.

    [bold]Examples[/]

    \b
      dit plan configs/imagenet256.yaml --price 2.50
      dit plan configs/imagenet256.yaml --set plan.count=16
      dit plan configs/digits.yaml --set train.steps=1000 --root runs
    """
    given = [] if price is None else [f"plan.price={price}"]
    config = load_study(study, [*(overrides or []), *given])
    from dit.health.recipe import warnings
    from dit.planning.budget_tables import show_budget
    from dit.planning.find_prior import find_prior
    from dit.planning.lines import say_wrapped
    from dit.planning.tables import show_plan
    from dit.storage import open_store
    from dit.study.learning_rate import describe

    show_plan(config)
    if rate := describe(config.train):
        say_wrapped(f"Recipe: {rate}.")
    for line in warnings(config):
        say_wrapped(f"warning: {line}")
    say()
    before = load_study(like or study, None)
    show_budget(config, find_prior(config, before, open_store(root), is_named=like is not None))


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
def doctor(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A file, a checkpoint's folder or address, or a study file.", show_default=False
        ),
    ],
    variant: Variant = None,
    seed: Seed = None,
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="The step that it claims; of a study file, the step to open.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="STUDY|FOLDER", help="Prepared dataset that the model was trained on."),
    ] = None,
    ema_decay: Annotated[float | None, typer.Option("--ema-decay", metavar="D", help="Decay of its EMA.")] = None,
    latents: Annotated[int, typer.Option("--latents", min=16, help="Latents of the dataset that are tried.")] = 256,
    file_only: Annotated[bool, typer.Option("--file-only", help="Read the file, do not run the model.")] = False,
    overrides: Overrides = None,
    root: Root = "runs",
) -> None:
    """Say what is wrong with a checkpoint of any program; exit code 3 if something is. Nothing in the file is executed.

    With --dataset, the model is also tried on latents as if it had been trained in other ways, which names the cause.

    [bold]Examples[/]

    \b
      dit doctor DiT-XL-2-256x256.pt
      dit doctor 0052000.pt --dataset configs/digits.yaml
      dit doctor configs/digits.yaml --variant mini-S/2 --step 500
    """
    from dit.doctor.bounds import open_bounds
    from dit.doctor.examine import examine
    from dit.doctor.subject import Claims, is_study_file, open_step, open_subject

    claims = Claims(variant, step, ema_decay)
    if is_study_file(checkpoint):
        from dit.storage import open_store

        config = load_study(Path(checkpoint), overrides)
        names = config.variants
        if variant is None and len(names) > 1:
            raise ConfigError(f"the study has {len(names)} variants; name one with --variant, such as {names[0]}")
        run = only_run(config, variant or names[0], seed)
        subject = open_step(config, open_store(root), run, claims)
    else:
        subject = open_subject(checkpoint, claims)
    diagnosis = examine(subject, open_bounds(dataset, subject, root), run_model=not file_only, latents=latents)
    diagnosis.show()
    if diagnosis.sick:
        raise typer.Exit(3)


@tools.command("import", rich_help_panel=TOOLS)
def import_checkpoint(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="The .pt or .safetensors file.", show_default=False)
    ],
    study: Study,
    variant: Annotated[str, typer.Option("--variant", metavar="NAME", help="The model it holds.")] = "DiT-XL/2",
    seed: Seed = None,
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="Step of its training. Unset: the one that the file has.")
    ] = None,
    overrides: Overrides = None,
    root: Root = "runs",
) -> None:
    """Put a checkpoint of another program into a study, to sample, evaluate and report it. Nothing in it is executed.

    [bold]Examples[/]

    \b
      dit import 0052000.pt --variant DiT-XL/2 --step 52000 my.yaml
      dit import DiT-XL-2-256x256.pt --step 7000000 my.yaml
    """
    config = load_study(study, overrides)
    from dit.stages import import_checkpoint as stage
    from dit.storage import open_store

    stage.run(config, open_store(root), checkpoint, only_run(config, variant, seed).name, step)
