"""A study as one pipeline, unrolled per variant when it is compiled: ParallelFor would drop retries.

kfp reads annotations as objects, so this module does without postponed ones.
"""

import json
from dataclasses import dataclass
from typing import Any

from kfp import dsl

from dit.errors import one_line
from dit.results.stages import PodKind
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.variants import ModelSpec
from pipelines.definition import components, step_pods


def build(config: StudyConfig, root: str, part: str | None = None, image: str = components.IMAGE) -> Any:
    """The pipeline of this study: prepare, then train, sample and evaluate each variant, then report.

    Its parameters may be changed when a run is submitted: `root` (store address), `steps` (of training), `cfg`
    (guidance scale), `samples` (images of a sample set), `seed` (of training), `image`, and `overrides` (as the command
    line's --set). The study and its variants are fixed here.

    With `part` it is that part alone, as one machine runs it, for which the parts before it must be complete: prepare,
    report, or the steps of the variant of this name.
    """
    # On one line: kfp puts it, as it is, into a comment at the top of the compiled file.
    description = one_line(config.description)
    text, fixed_image = _text(config), image

    @dsl.pipeline(name=f"dit-{config.study}", description=description)
    def pipeline(
        root: str = root,
        steps: int = config.train.steps,
        cfg: float = config.sampling.cfg_scale,
        samples: int = config.sampling.num_samples,
        seed: int = config.train.seed,
        image: str = image,
        overrides: list[str] = [],  # noqa: B006
    ) -> None:
        """The study's steps, or those of its part, with the parameters of a run."""
        asked = {"steps": steps, "cfg": cfg, "samples": samples, "seed": seed, "overrides": overrides}
        given = {"study": text, "root": root, **asked}
        if part is None:
            _Steps(config, given, image, pooled=True).all()
        else:
            # kfp.local knows no image that is a parameter.
            _Steps(config, given, fixed_image, pooled=False).only(part)

    return pipeline


@dataclass(frozen=True)
class _Steps:
    """The tasks of one pipeline."""

    config: StudyConfig
    given: dict[str, Any]
    """What every step takes: the study and the parameters."""
    image: Any
    pooled: bool
    """Whether the machines of a cluster share the work."""

    def all(self) -> None:
        """The whole study; so many variants at a time as `cluster:` says, in the study's order."""
        dataset = self._prepare_in_parts()
        turns = self.config.cluster.variants_at_a_time or len(self.config.specs)
        sampled: list[dsl.PipelineTask] = []
        evaluated: list[dsl.PipelineTask] = []
        for number, spec in enumerate(self.config.specs):
            # When a variant is sampled its jobs have ended, and their GPUs are free.
            before = [sampled[number - turns]] if number >= turns else []
            samples, metrics = self._variant(spec, dataset, before)
            sampled.append(samples)
            evaluated.append(metrics)
        self._report(evaluated)

    def only(self, part: str) -> None:
        """One part of the study, for which those before it are complete."""
        if part == "prepare":
            self._step("prepare", components.prepare(**self.given), "prepare")
        elif part == "report":
            self._report([])
        else:
            self._variant(self.config.spec(part), self._prepared(), [])

    def _prepare_in_parts(self) -> Any:
        """The dataset, made by so many pods at once and joined by one."""
        count = self.config.cluster.steps.parts
        text = _text(dataset_only(self.config))
        common = {key: self.given[key] for key in ("root", "overrides")}
        made = []
        for number in range(1, count + 1):
            task = components.prepare_part(dataset_study=text, image=self.image, part=number, parts=count, **common)
            made.append(self._step(f"prepare {number}/{count}", task, "prepare", cached=True))
        merged = self._step("merge", components.merge(**self.given), "report").after(*made)
        return merged.outputs["dataset"]

    def _prepared(self) -> Any:
        """The dataset that an earlier pipeline made."""
        manifest = f"{self.given['root']}/{layout.dataset(self.config)}/{layout.MANIFEST}"
        return dsl.importer(artifact_uri=manifest, artifact_class=dsl.Dataset).output

    def _variant(self, spec: ModelSpec, dataset: Any, before: list[Any]) -> tuple[dsl.PipelineTask, dsl.PipelineTask]:
        """The steps of one variant, one after the other; returns the last two."""
        own = {**self.given, "variant": spec.slug}
        work = {**own, "image": self.image}
        trained = self._step(f"train {spec.name}", components.train(**work, dataset=dataset), "launch").after(*before)
        sampled = components.sample(**work, model=trained.outputs["model"])
        self._step(f"sample {spec.name}", sampled, "launch")
        evaluated = components.evaluate(**own, sets=sampled.outputs["sets"])
        return sampled, self._step(f"evaluate {spec.name}", evaluated, "evaluate")

    def _report(self, evaluated: list[Any]) -> None:
        self._step("report", components.report(**self.given), "report").after(*evaluated)

    def _step(self, name: str, task: dsl.PipelineTask, kind: PodKind, cached: bool = False) -> dsl.PipelineTask:
        """A task under a name that people know.

        A stage knows itself what is complete. kfp's cache, which cannot see the store, saves pods and nothing else.
        """
        task.set_display_name(name).set_caching_options(cached).set_container_image(self.image)
        if self.pooled:
            step_pods.equip(task, kind, self.config.cluster)
        return task


def dataset_only(config: StudyConfig) -> StudyConfig:
    """The study that all studies of this dataset have in common: what does not decide the shards has a fixed value."""
    codec = {key: value for key, value in config.dataset.codec.model_dump().items() if key != "decoder"}
    return StudyConfig.model_validate(
        {
            "study": "dataset",
            "dataset": config.dataset.model_dump() | {"codec": codec},
            "variants": ["mini-S/2"],
            "train": {"steps": 1},
            "evaluation": {"at_steps": [1]},
            "fit": {key: getattr(config.fit, key) for key in ("threads", "decode_batch")},
        }
    )


def _text(config: StudyConfig) -> str:
    return json.dumps(config.model_dump(mode="json"), ensure_ascii=False)
