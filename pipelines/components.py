"""The pipeline's steps: lightweight components, each a thin call of one stage in the study's image.

The same five run under kfp.local's SubprocessRunner and DockerRunner and on a cluster. A step's artifact holds the
record that the stage wrote; the bytes stay in the store, at the address in the artifact's metadata.
"""

import os

from kfp import dsl

IMAGE = os.environ.get("DIT_IMAGE", "dit-scaling")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare(study: str, root: str, overrides: list[str], dataset: dsl.Output[dsl.Dataset]) -> None:
    """Images to shards."""
    from pipelines.step import run_step

    run_step("prepare", study, root, overrides).save(dataset)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    study: str,
    root: str,
    overrides: list[str],
    variant: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
) -> None:
    """Shards to checkpoints of one variant."""
    from pipelines.step import run_step

    run_step("train", study, root, overrides, variant).save(model)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sample(
    study: str,
    root: str,
    overrides: list[str],
    variant: str,
    model: dsl.Input[dsl.Model],
    samples: dsl.Output[dsl.Artifact],
) -> None:
    """Checkpoints to sample sets of one variant."""
    from pipelines.step import run_step

    run_step("sample", study, root, overrides, variant).save(samples)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    study: str,
    root: str,
    overrides: list[str],
    variant: str,
    samples: dsl.Input[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Sample sets to metrics of one variant."""
    from pipelines.step import run_step

    run_step("evaluate", study, root, overrides, variant).log(metrics)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(study: str, root: str, overrides: list[str], html: dsl.Output[dsl.HTML]) -> None:
    """All metrics to the verdict."""
    from pipelines.step import run_step

    run_step("report", study, root, overrides).publish(html)
