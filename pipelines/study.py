"""A study as one pipeline, unrolled per variant when it is compiled: ParallelFor would drop retries.

kfp reads annotations as objects, so this module does without postponed ones.
"""

import json
from typing import Any

from kfp import dsl

from dit.config import StudyConfig
from pipelines import components


def build(config: StudyConfig, root: str, *, one_by_one: bool = False) -> Any:
    """The pipeline of this study: prepare, then train, sample and evaluate each variant, then report.

    With `one_by_one` a variant begins when the one before it is evaluated; without, all may run at once.

    Its parameters `study` (the whole study file), `root` (store address) and `overrides` (as the command line's --set)
    may be changed when a run is submitted; the variants are fixed here.
    """
    # On one line each: kfp puts both, as they are, into a comment at the top of the compiled file.
    text = json.dumps(config.model_dump(mode="json"), ensure_ascii=False)
    description = " ".join(config.description.split())

    @dsl.pipeline(name=f"dit-{config.study}", description=description)
    def pipeline(study: str = text, root: str = root, overrides: list[str] = []) -> None:  # noqa: B006
        common = {"study": study, "root": root, "overrides": overrides}
        dataset = _step("prepare", components.prepare(**common)).outputs["dataset"]
        evaluations: list[dsl.PipelineTask] = []
        for spec in config.specs:
            own = {**common, "variant": spec.slug}
            trained = _step(f"train {spec.name}", components.train(**own, dataset=dataset))
            if one_by_one:
                trained.after(*evaluations[-1:])
            samples = _step(f"sample {spec.name}", components.sample(**own, model=trained.outputs["model"]))
            evaluated = components.evaluate(**own, samples=samples.outputs["samples"])
            evaluations.append(_step(f"evaluate {spec.name}", evaluated))
        _step("report", components.report(**common)).after(*evaluations)

    return pipeline


def _step(name: str, task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A task under a name that people know; a stage knows itself what is complete, so kfp's cache stays off."""
    return task.set_display_name(name).set_caching_options(False)
