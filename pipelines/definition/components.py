"""The pipeline's steps: each a thin call of one stage in the study's image.

The same ones run under kfp.local's SubprocessRunner and DockerRunner and on a cluster. An artifact holds what a person
wants to see of a step; the bytes stay in the store, at the address in the artifact's metadata.

Argo keeps a step's command, inputs and outputs six to eight times in a run's workflow, of which the server of Kubeflow
Pipelines reads no more than 1 MiB. So they are few and short. `merge` alone takes the study's text and what may be
changed when a run is submitted (see `pipelines.step.submitted.StudyInputs`). It writes the study of the run to the
store, and the steps after it take its address. Here a step is a function; `component.py` makes it a component of kfp.
"""

from kfp import dsl

STUDY_OUTPUT = "Output"
"""kfp's name for what `merge` returns."""


def prepare(study: str, dataset: dsl.Output[dsl.Dataset]) -> None:
    """Images to shards, all of them."""
    from pipelines.step.step import run_step

    run_step("prepare", study).dataset(dataset)


def prepare_part(
    dataset_study: str,
    root: str,
    part: int,
    parts: int,
    overrides: list[str],
    shards: dsl.Output[dsl.Dataset],
) -> None:
    """Images to one part of the shards."""
    # The inputs decide the shards and are, with the image, the key of kfp's cache.
    from pipelines.step.step import run_part

    run_part(dataset_study, root, overrides, (part, parts)).part(shards, (part, parts))


def merge(
    study: str,
    root: str,
    steps: int,
    cfg: float,
    samples: int,
    seed: int,
    overrides: list[str],
    dataset: dsl.Output[dsl.Dataset],
) -> str:
    """The parts' shards to one dataset; returns the address of the run's study in the store."""
    from pipelines.step.step import run_merge
    from pipelines.step.submitted import StudyInputs

    address, result = run_merge(StudyInputs(study, steps, cfg, samples, seed, overrides), root)
    result.dataset(dataset)
    return address


def train(study: str, image: str, variant: str, part: int, parts: int, model: dsl.Output[dsl.Model]) -> None:
    """Shards to a checkpoint of one variant."""
    from pipelines.step.share import Share
    from pipelines.step.step import run_variant

    run_variant(["train"], study, variant, Share(part, parts), image).model(model)


def sample(
    study: str,
    image: str,
    variant: str,
    part: int,
    parts: int,
    sets: dsl.Output[dsl.Artifact],
    grids: dsl.Output[dsl.HTML],
) -> None:
    """A checkpoint to its sample set."""
    from pipelines.step.share import Share
    from pipelines.step.step import run_variant

    run_variant(["sample"], study, variant, Share(part, parts), image).samples(sets, grids)


def evaluate(
    study: str,
    variant: str,
    part: int,
    parts: int,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """A sample set to its metrics."""
    from pipelines.step.share import Share
    from pipelines.step.step import run_variant

    run_variant(["evaluate"], study, variant, Share(part, parts)).metrics(metrics, summary)


def whole_variant(
    study: str,
    image: str,
    variant: str,
    part: int,
    parts: int,
    model: dsl.Output[dsl.Model],
    grids: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Shards to metrics of one variant, checkpoint by checkpoint: one process, or on a cluster a job for each stage."""
    from pipelines.step.share import Share
    from pipelines.step.step import run_variant

    result = run_variant(["train", "sample", "evaluate"], study, variant, Share(part, parts), image)
    result.model(model)
    result.grids(grids)
    result.metrics(metrics, summary)


def report(study: str, page: dsl.Output[dsl.HTML], verdict: dsl.Output[dsl.Markdown]) -> None:
    """All metrics to the verdict."""
    from pipelines.step.step import run_step

    run_step("report", study).report(page, verdict)
