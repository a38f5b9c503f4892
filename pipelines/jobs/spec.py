"""What a job is, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from dit.errors import ConfigError, InputError
from dit.study.cluster import ClusterConfig
from dit.study.config import StudyConfig
from dit.study.variants import ModelSpec
from pipelines.jobs import names
from pipelines.jobs.names import JobStage

STUDY_PATH = "/etc/dit/study.yaml"
GATHER_SECONDS = 7 * 86_400
"""How long pods that run wait for those that do not yet: longer than a launcher, whose patience decides."""
# An object's annotations may take 256 KiB, all together; the study travels in one.
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
        """As an ownerReference; Kubernetes knows such only inside a namespace."""
        return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": self.name, "uid": self.uid}


def workflows_of(manifest: Mapping[str, Any]) -> tuple[Workflow, ...]:
    """Whose job this is: the workflows that wait for it, none for a job that was started by hand."""
    texts = str((manifest["metadata"].get("annotations") or {}).get(names.WORKFLOWS, "")).split()
    return tuple(Workflow(*text.split("/")) for text in texts if text.count("/") == 2)


@dataclass(frozen=True)
class JobSpec:
    """One stage of one variant, for a number of pods that work together."""

    name: str
    namespace: str
    image: str
    stage: JobStage
    study: str
    variant: ModelSpec
    study_file: str
    """The study as YAML, overrides applied, without what only the launcher needs."""
    root: str
    cluster: ClusterConfig
    run_id: str | None = None
    """Of the pipeline run that submitted the job first."""
    workflow: Workflow | None = None
    """Behind that run: when it ends, nobody waits for the job any more."""

    @property
    def arguments(self) -> list[str]:
        """What follows `python` in a pod: the command that a person would type, under torchrun; see torchrun.py."""
        launcher = ["-m", "pipelines.jobs.torchrun", "-m", "dit"]
        return [*launcher, self.stage, STUDY_PATH, "--variant", self.variant.name, "--root", self.root]

    @property
    def labels(self) -> dict[str, str]:
        """For the job and its pods: the same for every run of the study."""
        return {
            names.APP: names.DOMAIN,
            names.STUDY: self.study,
            names.VARIANT: self.variant.slug,
            names.STAGE: self.stage,
            names.JOB: self.name,
        }

    @property
    def job_labels(self) -> dict[str, str]:
        """For the job alone."""
        run = {names.RUN: self.run_id} if self.run_id else {}
        queue = {"kueue.x-k8s.io/queue-name": self.cluster.queue} if self.cluster.queue else {}
        return {**self.labels, names.COMPONENT: "job", **run, **queue}

    def without_run(self) -> JobSpec:
        """The same work, whoever asked for it."""
        return replace(self, run_id=None, workflow=None)


def job_spec(config: StudyConfig, variant: str, stage: JobStage, root: str, image: str) -> JobSpec:
    """The job of one stage of one variant.

    Raises ConfigError for a study whose batch its pods cannot share, InputError for a root that pods cannot reach.
    """
    spec, cluster = config.spec(variant), config.cluster
    if not root.startswith("s3://"):
        raise InputError(f"root {root}: pods of a job reach no folder of this machine; give s3://bucket/prefix")
    if stage == "train" and config.train.global_batch % cluster.world_size:
        raise ConfigError(
            f"train.global_batch={config.train.global_batch} is not divisible by the {cluster.world_size} processes of"
            " cluster.replicas x cluster.gpus_per_pod; change one of them, such as --set cluster.replicas=1"
        )
    study_file = yaml.safe_dump(
        config.model_dump(mode="json", exclude={"cluster", "plan"}), sort_keys=False, allow_unicode=True
    )
    if len(study_file.encode()) > _MAX_STUDY_BYTES:
        raise ConfigError(
            f"study {config.study}: {len(study_file.encode()):,} bytes, a job takes {_MAX_STUDY_BYTES:,};"
            " shorten description"
        )
    return JobSpec(
        name=names.job_name(config.study, spec, stage),
        namespace=cluster.namespace,
        image=image,
        stage=stage,
        study=config.study,
        variant=spec,
        study_file=study_file,
        root=root,
        cluster=cluster,
    )
