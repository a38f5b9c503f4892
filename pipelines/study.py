"""A study as one pipeline, unrolled per variant when it is compiled: ParallelFor would drop retries.

kfp reads annotations as objects, so this module does without postponed ones.
"""

import json
from typing import Any

from kfp import dsl

from dit import layout
from dit.config import StudyConfig
from dit.variants import ModelSpec
from pipelines import components


def build(config: StudyConfig, root: str, part: str | None = None) -> Any:
    """The pipeline of this study: prepare, then train, sample and evaluate each variant, then report.

    With `part` it is that part alone, for which the parts before it must be complete: prepare, report, or the steps of
    the variant of this name.

    Its parameters `study` (the whole study file), `root` (store address) and `overrides` (as the command line's --set)
    may be changed when a run is submitted; the variants are fixed here.
    """
    # On one line each: kfp puts both, as they are, into a comment at the top of the compiled file.
    text = json.dumps(config.model_dump(mode="json"), ensure_ascii=False)
    description = " ".join(config.description.split())

    @dsl.pipeline(name=f"dit-{config.study}", description=description)
    def pipeline(study: str = text, root: str = root, overrides: list[str] = []) -> None:  # noqa: B006
        common = {"study": study, "root": root, "overrides": overrides}
        dataset, evaluations = None, []
        if part in (None, "prepare"):
            dataset = _step("prepare", components.prepare(**common)).outputs["dataset"]
        for spec in _specs(config, part):
            evaluations.append(_variant(spec, common, dataset or _prepared(config, root)))
        if part in (None, "report"):
            _step("report", components.report(**common)).after(*evaluations)

    return pipeline


def _specs(config: StudyConfig, part: str | None) -> tuple[ModelSpec, ...]:
    if part is None:
        return config.specs
    return () if part in ("prepare", "report") else (config.spec(part),)


def _variant(spec: ModelSpec, common: dict[str, Any], dataset: Any) -> dsl.PipelineTask:
    """The steps of one variant, one after the other; returns the last."""
    own = {**common, "variant": spec.slug}
    trained = _step(f"train {spec.name}", components.train(**own, dataset=dataset))
    samples = _step(f"sample {spec.name}", components.sample(**own, model=trained.outputs["model"]))
    return _step(f"evaluate {spec.name}", components.evaluate(**own, samples=samples.outputs["samples"]))


def _prepared(config: StudyConfig, root: Any) -> Any:
    """The dataset that an earlier pipeline made."""
    manifest = f"{root}/{layout.dataset(config)}/{layout.MANIFEST}"
    return dsl.importer(artifact_uri=manifest, artifact_class=dsl.Dataset).output


def _step(name: str, task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A task under a name that people know; a stage knows itself what is complete, so kfp's cache stays off."""
    return task.set_display_name(name).set_caching_options(False)
