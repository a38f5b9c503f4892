"""Names and labels of this project's objects on a cluster."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from dit.study.runs import Run

JobStage = Literal["train", "sample", "evaluate"]
"""The stages that run as jobs: those of `dit.results.stages`, and evaluation where one step does a whole variant."""

DOMAIN = "dit-scaling"
APP = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"
STUDY = f"{DOMAIN}/study"
VARIANT = f"{DOMAIN}/variant"
SEED = f"{DOMAIN}/seed"
"""Label of the jobs of a run whose seed is not train.seed."""
STAGE = f"{DOMAIN}/stage"
ROOT = f"{DOMAIN}/root"
"""Label of a job with a hash of its root."""
RUN = f"{DOMAIN}/run"
JOB = f"{DOMAIN}/job"
SPEC_HASH = f"{DOMAIN}/spec-hash"
WORKFLOWS = f"{DOMAIN}/workflows"
STUDY_FILE = f"{DOMAIN}/study-file"
JOB_ACCOUNTS, JOB_SECRETS = f"{DOMAIN}/job-accounts", f"{DOMAIN}/job-secrets"
JOB_CONFIG_MAPS, JOB_PULL_SECRETS = f"{DOMAIN}/job-config-maps", f"{DOMAIN}/job-image-pull-secrets"
"""Annotations of the jobs' namespace: what a job's pods may name, separated by spaces."""
SELECTOR = f"{APP}={DOMAIN},{COMPONENT}=job"
"""Selects the jobs, and no other objects."""

KFP_ENDPOINT = "KFP_ENDPOINT"
"""Variable with the address of the server of Kubeflow Pipelines."""
KFP_POD = "KFP_POD_NAME"
"""Variable that only Kubeflow Pipelines sets, in the pod of a step."""
KFP_RUN = "pipeline/runid"
"""Label of a run's workflow and pods; its value is the run's id."""
RUNS_NAMESPACE = "kubeflow"
"""Namespace in which Kubeflow Pipelines runs steps."""
STEP = "dit-step"
"""Service account of the pods of pipeline steps, which may not start jobs."""
LAUNCHER = "dit-launcher"
"""Service account that starts jobs: of launchers without a pipeline, and of steps that mount `LAUNCHER_TOKEN`."""
LAUNCHER_TOKEN = "dit-launcher-token"
"""Secret with the token of `LAUNCHER` in the namespace of runs."""
REAPER = "dit-reaper"

BY_DIGEST = re.compile(r"^[^@\s]+@sha256:[0-9a-f]{64}$")
"""Matches an image whose content is fixed."""

# Pod names are limited to 63 characters; controllers append up to 17 (`-node-0-511-x7k2p`).
MAX_LENGTH = 46
_HASH_DIGITS = 6
_ROOT_DIGITS = 16


def root_label(root: str) -> str:
    """Value of the label ROOT: studies of one name at two roots have jobs of their own."""
    return hashlib.sha256(root.rstrip("/").encode()).hexdigest()[:_ROOT_DIGITS]


def job_name(study: str, run: Run, stage: JobStage) -> str:
    """Name of a job: `dit-<study>-<variant>`, plus a seed other than train.seed, and a stage other than training.

    It is a DNS-1035 label, the same for each attempt.

    If it is too long, the study's part is cut and ends with a hash of the study's name; variant and stage stay
    readable. So is a seed of up to 6 digits.
    """
    seed = str(run.seed) if run.seed < 10**_HASH_DIGITS else _hashed(str(run.seed))
    tail = f"-{run.spec.slug}" + ("" if run.is_base else f"-seed-{seed}")
    tail += "" if stage == "train" else f"-{stage}"
    name = f"dit-{study}{tail}"
    if len(name) <= MAX_LENGTH:
        return name
    digest = _hashed(study)
    room = MAX_LENGTH - len(f"dit--{digest}{tail}")
    return f"dit-{study[:room].rstrip('-')}-{digest}{tail}"


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
