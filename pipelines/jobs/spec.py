"""What a job is, independent of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from dit.errors import ConfigError, InputError
from dit.planning.cost import check_job_size
from dit.results.stages import TRAIN
from dit.study.cluster import ClusterConfig
from dit.study.config import StudyConfig
from dit.study.runs import Run
from pipelines.jobs import names
from pipelines.jobs.names import JobStage

STUDY_PATH = "/etc/dit/study.yaml"
GATHER_SECONDS = 7 * 86_400
"""Timeout of running pods for the missing ones. It is longer than the launcher's timeouts, which decide:
`patience.start` about missing pods, `patience.stall` about pods that run and do not get on."""
# Kubernetes limits the annotations of an object to 256 KiB; the study is one of them.
_MAX_STUDY_BYTES = 200_000


@dataclass(frozen=True)
class Workflow:
    """The Argo workflow behind a pipeline run, which may be in another namespace than the job."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}/{self.uid}"

    @property
    def reference(self) -> dict[str, str]:
        """An ownerReference; valid only inside the workflow's namespace."""
        return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": self.name, "uid": self.uid}


def workflows_of(manifest: Mapping[str, Any]) -> tuple[Workflow, ...]:
    """The workflows that wait for a job; empty for a job that was started by hand."""
    texts = str((manifest["metadata"].get("annotations") or {}).get(names.WORKFLOWS, "")).split()
    return tuple(Workflow(*text.split("/")) for text in texts if text.count("/") == 2)


@dataclass(frozen=True)
class JobSpec:
    """One stage of one run, done by several pods together."""

    name: str
    namespace: str
    image: str
    stage: JobStage
    study: str
    run: Run
    run_options: tuple[str, ...]
    """The options of `dit` that choose the run."""
    study_file: str
    """The study as YAML with overrides applied, without the sections that only the launcher needs."""
    root: str
    cluster: ClusterConfig
    step: int | None = None
    """The checkpoint that it makes, samples or evaluates; None for all."""
    run_id: str | None = None
    """Id of the pipeline run that created the job."""
    workflow: Workflow | None = None
    """Workflow of that run; the reaper deletes the job when all its workflows have ended."""

    @property
    def arguments(self) -> list[str]:
        """Arguments of `python` in a pod: the same `dit` command as on a terminal, under torchrun; see torchrun.py."""
        launcher = ["-m", "pipelines.jobs.torchrun", "-m", "dit"]
        option = "--until" if self.stage == TRAIN.name else "--step"
        only = [option, str(self.step)] if self.step is not None else []
        return [*launcher, self.stage, STUDY_PATH, *self.run_options, *only, "--root", self.root]

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the job and its pods, the same for every run of the study."""
        return {
            names.APP: names.DOMAIN,
            names.STUDY: self.study,
            names.VARIANT: self.run.spec.slug,
            **({} if self.run.is_base else {names.SEED: str(self.run.seed)}),
            names.STAGE: self.stage,
            names.JOB: self.name,
        }

    @property
    def job_labels(self) -> dict[str, str]:
        """Labels of the job itself."""
        pipeline_run = {names.RUN: self.run_id} if self.run_id else {}
        queue = {"kueue.x-k8s.io/queue-name": self.cluster.queue} if self.cluster.queue else {}
        return {**self.labels, names.COMPONENT: "job", names.ROOT: names.root_label(self.root), **pipeline_run, **queue}

    def without_run(self) -> JobSpec:
        """The spec without the pipeline run that submitted it."""
        return replace(self, run_id=None, workflow=None)


def job_spec(
    config: StudyConfig, variant: str, stage: JobStage, root: str, image: str, step: int | None = None
) -> JobSpec:
    """The job of one stage of the run of this name or slug, for one checkpoint or all.

    Raises ConfigError when the global batch is not divisible by the number of processes, or the study is too long.
    Raises InputError when pods cannot reach the root.
    """
    own, cluster = config.run(variant), _evaluating(config.cluster) if stage == "evaluate" else config.cluster
    if not root.startswith("s3://"):
        raise InputError(f"root {root}: pods cannot reach a folder of this machine; give s3://bucket/prefix")
    if stage == "train":
        check_job_size(config)
    study_file = yaml.safe_dump(
        config.model_dump(mode="json", exclude={"cluster", "plan"}), sort_keys=False, allow_unicode=True
    )
    if len(study_file.encode()) > _MAX_STUDY_BYTES:
        raise ConfigError(
            f"study {config.study}: {len(study_file.encode()):,} bytes, a job accepts {_MAX_STUDY_BYTES:,};"
            " shorten description"
        )
    return JobSpec(
        name=names.job_name(config.study, own, stage),
        namespace=cluster.namespace,
        image=image,
        stage=stage,
        study=config.study,
        run=own,
        run_options=tuple(config.options(own)),
        study_file=study_file,
        root=root,
        cluster=cluster,
        step=step,
    )


def _evaluating(cluster: ClusterConfig) -> ClusterConfig:
    """The settings of an evaluation's job: one pod with the resources of a step that evaluates."""
    step = cluster.steps.evaluate
    own = {name: getattr(step, name) for name in ("cpu", "memory", "shared_memory", "scratch")}
    changed = {"replicas": 1, "gpus_per_pod": step.gpus, "pod": cluster.pod.model_copy(update=own)}
    product = {} if step.gpus else {"gpu_product": None}
    deadline = {"deadline_seconds": step.timeout_seconds} if step.timeout_seconds else {}
    return cluster.model_copy(update=changed | product | deadline)
