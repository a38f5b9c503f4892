"""A study as one pipeline, unrolled per run when it is compiled: ParallelFor would drop retries.

kfp reads annotations as objects, so this module does without postponed ones.
"""

import json
from dataclasses import dataclass
from typing import Any

from kfp import dsl

from dit.errors import one_line
from dit.results.stages import PREPARE, REPORT, VARIANT_STAGES, PodKind, milestones
from dit.study.config import StudyConfig
from dit.study.runs import Run
from pipelines.definition import components, step_pods
from pipelines.definition.component import IMAGE, component
from pipelines.step import submitted
from pipelines.step.share import Share

SEPARATE_STAGES, SEPARATE_CHECKPOINTS = 5, 12
"""With at most `SEPARATE_STAGES` checkpoints, those of all runs, each stage of each is a step. With at most
`SEPARATE_CHECKPOINTS`, each checkpoint is one. With more, each run of a variant is one: the workflow would otherwise be
too large for the server of Kubeflow Pipelines (see `pipelines.runs.workflow`)."""


def build(config: StudyConfig, root: str, image: str = IMAGE) -> Any:
    """The pipeline of this study: prepare; for each run train, sample and evaluate each checkpoint; report.

    Its parameters may be changed when a run is submitted: `root` (store address), `steps` (of training), `cfg`
    (guidance scale), `samples` (images of a sample set), `seed` (of training), and `overrides` (as the command line's
    --set). The study, its variants, their seeds and the image are fixed here.
    """
    # kfp puts it, as it is, on one line of a comment in the compiled file. Braces could be a template.
    description = one_line(config.description).replace("{", "(").replace("}", ")")

    @dsl.pipeline(name=_name(config), description=description)
    def pipeline(
        root: str = root,
        steps: int = config.train.steps,
        cfg: float = config.sampling.cfg_scale,
        samples: int = config.sampling.num_samples,
        seed: int = config.train.seed,
        overrides: list[str] = [],  # noqa: B006
    ) -> None:
        """The study's steps, with the parameters of a run."""
        asked = {"steps": steps, "cfg": cfg, "samples": samples, "seed": seed}
        _Steps(config, image, pooled=True).all({"root": root, "overrides": overrides}, asked)

    return pipeline


def build_part(config: StudyConfig, root: str, part: str, image: str = IMAGE) -> Any:
    """One part of the study as one machine runs it: prepare, report, or runs, separated by commas.

    The parts before it must be complete, and the study must be at `submitted.address`.
    """

    @dsl.pipeline(name=_name(config))
    def pipeline() -> None:
        """The steps of one part."""
        _Steps(config, image, pooled=False).only(part, root)

    return pipeline


def _name(config: StudyConfig) -> str:
    return f"dit-{config.study}"


@dataclass(frozen=True)
class _Steps:
    """The tasks of one pipeline."""

    config: StudyConfig
    image: str
    pooled: bool
    """Whether the machines of a cluster share the work."""

    def all(self, common: dict[str, Any], asked: dict[str, Any]) -> None:
        """The whole study; so many runs at a time as `cluster:` says, in the study's order.

        `common` is what the preparation takes of the run's parameters, `asked` the rest, which `merge` takes, too.
        """
        merged = self._prepare_in_parts(common, asked)
        study = merged.outputs[components.STUDY_OUTPUT]
        turns = self.config.cluster.variants_at_a_time or len(self.config.runs)
        last_jobs: list[dsl.PipelineTask] = []
        ends: list[dsl.PipelineTask] = []
        for number, run in enumerate(self.config.runs):
            # Once a run's last job has ended, its GPUs are free.
            before = [last_jobs[number - turns]] if number >= turns else []
            last_job, end = self._variant(run, study, before)
            last_jobs.append(last_job)
            ends.append(end)
        self._report(study, ends)

    def only(self, part: str, root: str) -> None:
        """One part of the study, for which those before it are complete."""
        study = submitted.address(self.config, root)
        if part == PREPARE.name:
            self._step(PREPARE.name, component(components.prepare)(study=study), PREPARE.pod)
        elif part == REPORT.name:
            self._report(study, [])
        else:
            self._whole(part, part, study, [], Share())

    def _prepare_in_parts(self, common: dict[str, Any], asked: dict[str, Any]) -> dsl.PipelineTask:
        """The dataset, made by so many pods at once and joined by one, which also writes the run's study."""
        count = self.config.cluster.steps.parts
        text = _text(dataset_only(self.config), exclude_unset=True)
        made = []
        for number in range(1, count + 1):
            task = component(components.prepare_part)(dataset_study=text, part=number, parts=count, **common)
            made.append(self._step(f"{PREPARE.name} {number}/{count}", task, PREPARE.pod, cached=True))
        merged = component(components.merge)(study=_text(self.config), **common, **asked)
        return self._step("merge", merged, "report").after(*made)

    def _variant(
        self, run: Run, study: Any, before: list[dsl.PipelineTask]
    ) -> tuple[dsl.PipelineTask, dsl.PipelineTask]:
        """The steps of one run, one after the other; the last that starts a job, and the last.

        They are ordered by name: an artifact that a step takes makes the workflow larger by 5 kB.
        """
        parts = len(milestones(self.config))
        checkpoints = parts * len(self.config.runs)
        shares = (
            [Share(part, parts) for part in range(1, parts + 1)] if checkpoints <= SEPARATE_CHECKPOINTS else [Share()]
        )
        for share in shares:
            if checkpoints > SEPARATE_STAGES:
                last_job = end = self._whole(run.slug, run.name, study, before, share)
            else:
                last_job, end = self._stages(run, study, before, share)
            before = [end]
        return last_job, end

    def _stages(
        self, run: Run, study: Any, before: list[dsl.PipelineTask], share: Share
    ) -> tuple[dsl.PipelineTask, dsl.PipelineTask]:
        """A step for each stage of a checkpoint; the last that starts a job, and the last."""
        tasks = []
        for stage in VARIANT_STAGES:
            given = {"study": study, "variant": run.slug, **vars(share)}
            image = {"image": self.image} if stage.as_job else {}
            step = component(getattr(components, stage.name))(**given, **image)
            tasks.append((stage, self._step(stage.step_name(run) + _of(share), step, stage.pod).after(*before)))
            before = [step]
        return [task for stage, task in tasks if stage.as_job][-1], tasks[-1][1]

    def _whole(
        self, runs: str, name: str, study: Any, before: list[dsl.PipelineTask], share: Share
    ) -> dsl.PipelineTask:
        """One step for all stages, of one checkpoint or of all."""
        task = component(components.whole_variant)(study=study, variant=runs, image=self.image, **vars(share))
        return self._step(f"variant {name}" + _of(share), task, "launch").after(*before)

    def _report(self, study: Any, evaluated: list[dsl.PipelineTask]) -> None:
        self._step(REPORT.name, component(components.report)(study=study), REPORT.pod).after(*evaluated)

    def _step(self, name: str, task: dsl.PipelineTask, kind: PodKind, cached: bool = False) -> dsl.PipelineTask:
        """A task under a name that people know.

        A stage knows itself what is complete. kfp's cache, which cannot see the store, saves pods and nothing else.
        """
        task.set_display_name(name).set_caching_options(cached).set_container_image(self.image)
        if self.pooled:
            step_pods.set_pod_settings(task, kind, self.config.cluster)
        return task


def _of(share: Share) -> str:
    return f" {share.part}/{share.parts}" if share.parts > 1 else ""


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


def _text(config: StudyConfig, exclude_unset: bool = False) -> str:
    text = json.dumps(config.model_dump(mode="json", exclude_unset=exclude_unset), ensure_ascii=False)
    # kfp and Argo replace {{...}} wherever it stands. In JSON only a string can hold two braces in a row.
    return text.replace("{{", "{\\u007b")
