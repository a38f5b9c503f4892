"""The pipeline's steps: lightweight components, each a thin call of one stage in the study's image.

The same ones run under kfp.local's SubprocessRunner and DockerRunner and on a cluster. An artifact holds what a person
wants to see of a step; the bytes stay in the store, at the address in the artifact's metadata.

Every step takes the study, as the text that was compiled, and what may be changed when a run is submitted:
`root`, `steps`, `cfg`, `samples`, `seed` and `overrides` (see `pipelines.step.step.Run`), and the image for its jobs.
"""

from kfp import dsl

IMAGE = "dit-scaling"
"""Stands for the image that `pipelines.definition.pipeline.build` sets on every step."""


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare(
    study: str,
    root: str,
    steps: int,
    cfg: float,
    samples: int,
    seed: int,
    overrides: list[str],
    dataset: dsl.Output[dsl.Dataset],
) -> None:
    """Images to shards, all of them."""
    from pipelines.step.step import Run, run_step

    run_step("prepare", Run(study, root, steps, cfg, samples, seed, overrides)).dataset(dataset)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare_part(
    dataset_study: str,
    root: str,
    image: str,
    part: int,
    parts: int,
    overrides: list[str],
    shards: dsl.Output[dsl.Dataset],
) -> None:
    """Images to one part of the shards.

    Its inputs are all that decides them, and so the key of its cache: `dataset_study` is a study of nothing but the
    dataset (`pipelines.definition.pipeline.dataset_only`), and the image, named by digest, is the code.
    """
    from pipelines.step.step import run_part

    run_part(dataset_study, root, overrides, (part, parts)).part(shards, (part, parts))


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def merge(
    study: str,
    root: str,
    steps: int,
    cfg: float,
    samples: int,
    seed: int,
    overrides: list[str],
    dataset: dsl.Output[dsl.Dataset],
) -> None:
    """The parts' shards to one dataset."""
    from pipelines.step.step import Run, run_merge

    run_merge(Run(study, root, steps, cfg, samples, seed, overrides)).dataset(dataset)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    study: str,
    root: str,
    steps: int,
    cfg: float,
    samples: int,
    seed: int,
    overrides: list[str],
    image: str,
    variant: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
) -> None:
    """Shards to checkpoints of one variant."""
    from pipelines.step.step import Run, run_job

    run_job("train", Run(study, root, steps, cfg, samples, seed, overrides), variant, image).model(model)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sample(
    study: str,
    root: str,
    steps: int,
    cfg: float,
    samples: int,
    seed: int,
    overrides: list[str],
    image: str,
    variant: str,
    model: dsl.Input[dsl.Model],
    sets: dsl.Output[dsl.Artifact],
    grids: dsl.Output[dsl.HTML],
) -> None:
    """Checkpoints to sample sets of one variant."""
    from pipelines.step.step import Run, run_job

    run_job("sample", Run(study, root, steps, cfg, samples, seed, overrides), variant, image).samples(sets, grids)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    study: str,
    root: str,
    steps: int,
    cfg: float,
    samples: int,
    seed: int,
    overrides: list[str],
    variant: str,
    sets: dsl.Input[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Sample sets to metrics of one variant."""
    from pipelines.step.step import Run, run_step

    run = Run(study, root, steps, cfg, samples, seed, overrides)
    run_step("evaluate", run, variant).metrics(metrics, summary)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    study: str,
    root: str,
    steps: int,
    cfg: float,
    samples: int,
    seed: int,
    overrides: list[str],
    page: dsl.Output[dsl.HTML],
    verdict: dsl.Output[dsl.Markdown],
) -> None:
    """All metrics to the verdict."""
    from pipelines.step.step import Run, run_step

    run_step("report", Run(study, root, steps, cfg, samples, seed, overrides)).report(page, verdict)
