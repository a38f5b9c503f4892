"""Commands of the platform: studies on this machine, runs and jobs on a cluster.

`dit` loads them through the entry point group `dit.commands`. Each command imports its code when it runs, so that help
loads neither kfp nor Kubernetes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from dit.cli.options import CLUSTER, STUDIES, Overrides, Root, Seed, Study, load_study, only_run
from dit.console import say
from dit.errors import ConfigError, StoppedError
from pipelines.cli.services import services
from pipelines.jobs.names import KFP_ENDPOINT, RUNS_NAMESPACE, JobStage

commands = typer.Typer()
commands.add_typer(services)

_EXPERIMENT = "dit"

PodRoot = Annotated[
    str,
    typer.Option("--root", metavar="ADDRESS", envvar="DIT_ROOT", help="Store of all results: s3://bucket/prefix."),
]
Image = Annotated[
    str | None,
    typer.Option("--image", metavar="NAME@DIGEST", help="Image of all steps and jobs. Unset: the one last pushed."),
]
JobImage = Annotated[str, typer.Option("--image", metavar="NAME@DIGEST", help="Image of the job.")]
Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="URL", envvar=KFP_ENDPOINT, help="Server of Kubeflow Pipelines."),
]
RunsNamespace = Annotated[str, typer.Option("--runs-namespace", metavar="NAME", help="Namespace in which steps run.")]
RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="Id of the run, from dit status.", show_default=False)]
Variant = Annotated[str, typer.Option("--variant", metavar="NAME", help="The variant that the job works on.")]
StageName = Annotated[JobStage, typer.Option("--stage", help="The stage that the job runs.")]


@commands.command("study", rich_help_panel=STUDIES)
def run_study(
    study: Study,
    overrides: Overrides = None,
    root: Root = "runs",
    runner: Annotated[
        Literal["local", "docker"], typer.Option("--runner", help="Run each step as a process, or in a container.")
    ] = "local",
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="NAME", help="Image of the containers. Unset: the one of `make build`."),
    ] = None,
) -> None:
    """Run the whole study on this machine, all stages of all variants and seeds, and print the verdict.

    [bold]Examples[/]

    \b
      dit study configs/digits.yaml
      dit study configs/digits.yaml --set train.steps=400 --root /tmp/quick
      dit study configs/digits.yaml --runner docker
    """
    load_study(study, overrides)
    if runner == "docker":
        from pipelines.local.docker import LOCAL_IMAGE, find_image

        image = find_image(image or LOCAL_IMAGE)
    elif image:
        raise ConfigError(f"--image {image} is used only with --runner docker; add it")
    from pipelines.local.runner import run

    run(study, root, overrides or [], image)


@commands.command(rich_help_panel=STUDIES)
def status(
    study: Study,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="ID", help="Run of Kubeflow Pipelines. Unset: the study's newest."),
    ] = None,
    experiment: Annotated[
        str, typer.Option("--experiment", metavar="NAME", help="Experiment to search for the newest run.")
    ] = _EXPERIMENT,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until the run ends.")] = False,
    overrides: Overrides = None,
    root: Root = "runs",
) -> None:
    """Show how far a study is: steps of its pipeline run, jobs, pods, training steps done, the newest metrics.

    Asks Kubeflow Pipelines at KFP_ENDPOINT, the cluster of KUBECONFIG and the store; says what it could not reach.

    [bold]Examples[/]

    \b
      dit status configs/imagenet256.yaml --root s3://bucket/dit --watch
    """
    load_study(study, overrides)
    from pipelines.status import run as show

    show(study, root, overrides or [], run, experiment, watch)


@commands.command(rich_help_panel=CLUSTER)
def preflight(
    study: Study,
    root: PodRoot,
    overrides: Overrides = None,
    endpoint: Endpoint = None,
    runs_namespace: RunsNamespace = RUNS_NAMESPACE,
) -> None:
    """Check whether a study can run on the cluster of KUBECONFIG; without an endpoint, whether its jobs can.

    [bold]Examples[/]

    \b
      dit preflight configs/imagenet256.yaml --root s3://bucket/dit
    """
    config = load_study(study, overrides)
    from pipelines.preflight.check import preflight as check
    from pipelines.runs.api import endpoint_of

    check(config, root, endpoint_of(endpoint) if endpoint else None, runs_namespace)


@commands.command(rich_help_panel=CLUSTER)
def submit(
    study: Study,
    root: PodRoot,
    overrides: Overrides = None,
    image: Image = None,
    endpoint: Endpoint = None,
    runs_namespace: RunsNamespace = RUNS_NAMESPACE,
    experiment: Annotated[
        str, typer.Option("--experiment", metavar="NAME", help="Experiment of the run; created if it does not exist.")
    ] = _EXPERIMENT,
    run: Annotated[
        str | None, typer.Option("--run", metavar="NAME", help="Name of the run. Unset: the study's, and the time.")
    ] = None,
    cache: Annotated[Literal["on", "off"], typer.Option("--cache", help="Reuse steps of earlier runs.")] = "on",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the run ends; fail if it fails.")] = False,
) -> None:
    """Submit a study to Kubeflow Pipelines, after a preflight.

    [bold]Examples[/]

    \b
      dit submit configs/digits.yaml --root s3://bucket/dit
      dit submit configs/digits.yaml --root s3://bucket/dit --run first --wait
    """
    config = load_study(study, overrides)
    from pipelines.compile import pushed_image
    from pipelines.submit import Submission
    from pipelines.submit import submit as start

    with _when_interrupted("the run continues; see dit status, end it with dit terminate RUN_ID"):
        options = Submission(endpoint, runs_namespace, experiment, run, cache == "on", wait)
        uid = start(config, root, image or pushed_image(), options)
        if not wait:
            say(f"to see its progress: dit status {study} --root {root} --run {uid}")


@commands.command(rich_help_panel=CLUSTER)
def terminate(run_id: RunId, endpoint: Endpoint = None) -> None:
    """End a run; the reaper deletes its jobs.

    [bold]Examples[/]

    \b
      dit terminate 5f0c9d3e-8a51-4f0c-9d3e-8a514f0c9d3e
    """
    from pipelines.submit import terminate as end

    end(run_id, endpoint)


@commands.command("compile", rich_help_panel=CLUSTER)
def write_pipeline(
    study: Study,
    root: PodRoot,
    overrides: Overrides = None,
    image: Image = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="File to write. Unset: build/STUDY.yaml.")
    ] = None,
) -> None:
    """Write a study as a pipeline for Kubeflow Pipelines and print the name of the file.

    [bold]Examples[/]

    \b
      dit compile configs/digits.yaml --root s3://bucket/dit
    """
    config = load_study(study, overrides)
    from pipelines.compile import compile_study, package_of, pushed_image

    say(str(compile_study(config, root, image or pushed_image(), output or package_of(config))))


@commands.command(rich_help_panel=CLUSTER)
def launch(
    study: Study,
    variant: Variant,
    root: PodRoot,
    image: JobImage,
    seed: Seed = None,
    stage: StageName = "train",
    overrides: Overrides = None,
) -> None:
    """Run one stage of one variant as a job, without a pipeline, and wait for its end.

    [bold]Examples[/]

    \b
      dit launch my.yaml --variant DiT-XL/2 --root s3://bucket/dit --image IMAGE
    """
    config = load_study(study, overrides)
    from pipelines.cluster.client import Cluster
    from pipelines.jobs.launch import launch as run
    from pipelines.jobs.spec import job_spec

    with _when_interrupted("the job continues; run the same command to adopt it"):
        run(config, job_spec(config, only_run(config, variant, seed).name, stage, root, image), Cluster.connect())


@commands.command(rich_help_panel=CLUSTER)
def render(
    study: Study,
    variant: Variant,
    root: PodRoot,
    image: JobImage,
    seed: Seed = None,
    stage: StageName = "train",
    overrides: Overrides = None,
) -> None:
    """Print the objects that `dit launch` would create, as YAML.

    [bold]Examples[/]

    \b
      dit render my.yaml --variant DiT-XL/2 --root s3://bucket/dit --image IMAGE
    """
    config = load_study(study, overrides)
    import yaml

    from pipelines.jobs.registry import render_job
    from pipelines.jobs.spec import job_spec

    rendered = render_job(job_spec(config, only_run(config, variant, seed).name, stage, root, image))
    documents = [*(manifest for _, manifest in rendered.companions), rendered.job]
    say(yaml.safe_dump_all(documents, sort_keys=False).rstrip())


@contextmanager
def _when_interrupted(effect: str) -> Iterator[None]:
    """Turn Ctrl-C in the body into StoppedError with its effect."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(f"interrupted; {effect}", signal.SIGINT) from None
