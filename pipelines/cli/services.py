"""Commands for the services on a cluster: deployments, secrets, the reaper, MLflow's pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit.cli.options import CLUSTER, Overrides, Port, Study, load_study

services = typer.Typer()

Overlay = Annotated[
    str, typer.Argument(metavar="OVERLAY", help="Folder of k8s/overlays, such as kind.", show_default=False)
]
Build = Annotated[
    Path, typer.Option("--build", metavar="FOLDER", help="Where `make push` left the digests of the images.")
]


@services.command(rich_help_panel=CLUSTER)
def deploy(
    overlay: Overlay,
    force: Annotated[bool, typer.Option("--force", help="Also set fields that somebody changed since.")] = False,
    build: Build = Path("build"),
) -> None:
    """Deploy an overlay of k8s/overlays with the images last pushed, and wait until it is up.

    [bold]Examples[/]

    \b
      dit deploy kind
      dit deploy pipelines
    """
    from pipelines.deploy import deploy as apply

    apply(overlay, force, build)


@services.command(rich_help_panel=CLUSTER)
def undeploy(overlay: Overlay, build: Build = Path("build")) -> None:
    """Remove what deploy made; volume claims, secrets and the namespace stay.

    [bold]Examples[/]

    \b
      dit undeploy kind
    """
    from pipelines.deploy import undeploy as remove

    remove(overlay, build)


@services.command(rich_help_panel=CLUSTER)
def secrets(overlay: Overlay, build: Build = Path("build")) -> None:
    """Create the secrets that an overlay lacks, with random values; only for overlays that bring their services.

    [bold]Examples[/]

    \b
      dit secrets kind
    """
    from pipelines.deploy import create_secrets

    create_secrets(overlay, build)


@services.command(rich_help_panel=CLUSTER)
def reap(
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", metavar="NAME", help="Namespace of the jobs. Unset: this pod's, or the context's."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Sweep once and print what was deleted.")] = False,
) -> None:
    """Delete the jobs of runs that have ended, until stopped.

    [bold]Examples[/]

    \b
      dit reap --once --namespace dit-scaling
    """
    from pipelines.reaper import reap as run

    run(namespace, once)


@services.command("ui-cluster", rich_help_panel=CLUSTER)
def ui_cluster(overlay: Overlay, study: Study, overrides: Overrides = None, port: Port = 5000) -> None:
    """Open the MLflow that an overlay deployed, through a forwarded port, on the view of a study, until Ctrl-C.

    [bold]Examples[/]

    \b
      dit ui-cluster kind configs/digits.yaml
    """
    config = load_study(study, overrides)
    from pipelines.cluster_ui import show

    show(overlay, config, port)


@services.command(
    "with-cluster",
    rich_help_panel=CLUSTER,
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
)
def with_cluster(
    study: Study,
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="The command and its arguments.", show_default=False)
    ],
) -> None:
    """Run a command on this machine with the store and the MLflow server of a study's cluster.

    Addresses and credentials come from the cluster's config maps and secrets, as for dit preflight, launch and status.
    What only the cluster reaches is reached through kubectl port-forward while the command runs.

    [bold]Examples[/]

    \b
      dit with-cluster my.yaml dit report my.yaml --root s3://dit-scaling
    """
    config = load_study(study, None)
    from pipelines.cluster.client import Cluster
    from pipelines.cluster.store_access import run_here

    raise typer.Exit(run_here(command, Cluster.connect(), config))
