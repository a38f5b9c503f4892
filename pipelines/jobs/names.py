"""How our objects on a cluster are named and labelled."""

from __future__ import annotations

import hashlib
from typing import Literal

from dit.study.variants import ModelSpec

JobStage = Literal["train", "sample"]
"""Stages that run as jobs: those rows of `dit.results.stages` that say so."""

DOMAIN = "dit-scaling"
APP = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"
STUDY = f"{DOMAIN}/study"
VARIANT = f"{DOMAIN}/variant"
STAGE = f"{DOMAIN}/stage"
RUN = f"{DOMAIN}/run"
JOB = f"{DOMAIN}/job"
SPEC_HASH = f"{DOMAIN}/spec-hash"
WORKFLOWS = f"{DOMAIN}/workflows"
STUDY_FILE = f"{DOMAIN}/study-file"
SELECTOR = f"{APP}={DOMAIN},{COMPONENT}=job"
"""Finds the jobs, and nothing else of ours."""

KFP_ENDPOINT = "KFP_ENDPOINT"
"""Variable with the address of the server of Kubeflow Pipelines."""
KFP_POD = "KFP_POD_NAME"
"""Variable that Kubeflow Pipelines sets in a step's pod, and nothing else sets."""
KFP_RUN = "pipeline/runid"
"""Label with the id of a run, on its workflow and on its pods."""
RUNS_NAMESPACE = "kubeflow"
"""Where Kubeflow Pipelines runs steps."""
LAUNCHER = "dit-launcher"
"""Account that steps run as, there and, for a launcher without a pipeline, beside the jobs."""
REAPER = "dit-reaper"

# Controllers add up to 17 characters (`-node-0-511-x7k2p`) to make the names of pods, whose limit is 63.
MAX_LENGTH = 46
_HASH_DIGITS = 6


def job_name(study: str, spec: ModelSpec, stage: JobStage) -> str:
    """`dit-<study>-<variant>`, and `-sample` for sampling: a DNS-1035 label, the same at every try.

    Where that is too long, the study's part is cut and a hash of the whole study name takes its end's place, so that
    variant and stage can still be read.
    """
    tail = f"-{spec.slug}" + ("-sample" if stage == "sample" else "")
    name = f"dit-{study}{tail}"
    if len(name) <= MAX_LENGTH:
        return name
    digest = hashlib.sha256(study.encode()).hexdigest()[:_HASH_DIGITS]
    room = MAX_LENGTH - len(f"dit--{digest}{tail}")
    return f"dit-{study[:room].rstrip('-')}-{digest}{tail}"
