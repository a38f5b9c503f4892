"""A job's name, labels, owner and hash."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit.errors import ConfigError, InputError
from dit.study.runs import Run
from dit.study.study_file import load, load_text
from dit.study.variants import VARIANTS, resolve
from pipelines.jobs import names
from pipelines.jobs.registry import render_job, spec_hash
from pipelines.jobs.spec import JobSpec, Workflow, job_spec, workflows_of

CONFIGS = Path(__file__).parents[3] / "configs"
IMAGE = "registry.example/dit-scaling@sha256:0123"
STUDIES = st.from_regex(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)


def spec(*overrides: str, variant: str = "DiT-XL/2", study: str = "imagenet256") -> JobSpec:
    return job_spec(load(CONFIGS / f"{study}.yaml", overrides), variant, "train", "s3://bucket/dit", IMAGE)


def test_a_job_name_has_study_variant_and_stage() -> None:
    assert names.job_name("imagenet256", Run(resolve("DiT-XL/4"), 0), "train") == "dit-imagenet256-dit-xl-4"
    assert names.job_name("digits", Run(resolve("mini-S/2"), 0), "sample") == "dit-digits-mini-s-2-sample"
    seed = Run(resolve("mini-S/2"), 1, is_base=False)
    assert names.job_name("digits", seed, "sample") == "dit-digits-mini-s-2-seed-1-sample"


def test_a_job_of_another_seed_has_it_in_its_labels_and_passes_it_to_its_pods() -> None:
    config = load(CONFIGS / "digits.yaml", ["seeds=2"])
    base, other = (
        job_spec(config, name, "train", "s3://bucket/dit", IMAGE) for name in ("mini-S/2", "mini-s-2-seed-1")
    )
    assert names.SEED not in base.labels
    assert (other.labels[names.VARIANT], other.labels[names.SEED]) == ("mini-s-2", "1")
    for job, seed in ((base, "0"), (other, "1")):
        words = job.arguments
        assert words[words.index("--variant") :][:4] == ["--variant", "mini-S/2", "--seed", seed]


@given(
    study=STUDIES,
    variant=st.sampled_from(sorted(VARIANTS)),
    stage=st.sampled_from(["train", "sample", "evaluate"]),
    seed=st.none() | st.integers(0, 2**63 - 1),
)
def test_every_job_name_is_a_dns_label_short_enough_for_pod_names(
    study: str, variant: str, stage: names.JobStage, seed: int | None
) -> None:
    name = names.job_name(study, Run(resolve(variant), seed or 0, is_base=seed is None), stage)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(f"{name}-node-0-511-x7k2p") <= 63
    assert re.sub("(-seed-[0-9a-f]+)?(-(sample|evaluate))?$", "", name).endswith(resolve(variant).slug)
    assert seed is None or seed > 999_999 or f"-seed-{seed}" in name


def test_long_studies_that_begin_alike_have_different_names() -> None:
    first, second = (names.job_name(f"{'a' * 39}{end}", Run(resolve("mini-XL/2"), 0), "sample") for end in "xy")
    assert first != second
    assert len(first) == len(second) == names.MAX_LENGTH


def test_the_spec_hash_does_not_depend_on_the_run() -> None:
    bare = spec()
    run = replace(bare, run_id="run-1", workflow=Workflow("kubeflow", "digits-abc", "uid-1"))
    assert spec_hash(render_job(bare).job) == spec_hash(render_job(run).job) != ""
    assert workflows_of(render_job(run).job) == (run.workflow,)
    assert workflows_of(render_job(bare).job) == ()


@pytest.mark.parametrize(
    "override", ["cluster.replicas=4", "train.steps=500000", "cluster.pod.memory=32Gi", "cluster.job=trainjob"]
)
def test_another_configuration_has_another_spec_hash(override: str) -> None:
    assert spec_hash(render_job(spec()).job) != spec_hash(render_job(spec(override)).job)


def test_the_spec_hash_does_not_depend_on_the_launchers_timeouts() -> None:
    assert spec_hash(render_job(spec()).job) == spec_hash(render_job(spec("cluster.patience.start=100")).job)


@pytest.mark.parametrize(("stage", "option"), [("train", "--until"), ("sample", "--step"), ("evaluate", "--step")])
def test_the_job_of_one_checkpoint_names_its_step(stage: names.JobStage, option: str) -> None:
    config = load(CONFIGS / "imagenet256.yaml")
    whole, one = (job_spec(config, "DiT-XL/2", stage, "s3://bucket/dit", IMAGE, step) for step in (None, 100_000))
    assert one.name == whole.name
    assert one.arguments == [*whole.arguments[:-2], option, "100000", *whole.arguments[-2:]]


def test_only_a_workflow_of_the_same_namespace_owns_the_job() -> None:
    here, elsewhere = (Workflow(namespace, "w", "uid-1") for namespace in ("dit-scaling", "kubeflow"))
    assert "ownerReferences" not in render_job(replace(spec(), workflow=elsewhere)).job["metadata"]
    owners = render_job(replace(spec(), workflow=here)).job["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == ["uid-1"]


def test_pods_get_the_study_with_its_overrides() -> None:
    given = load_text(spec("train.steps=500000").study_file)
    assert given.train.steps == 500_000
    assert given.training_hash(given.run("DiT-XL/2")) == load(CONFIGS / "imagenet256.yaml").training_hash(
        given.run("DiT-XL/2")
    )


@pytest.mark.parametrize(
    ("gpus", "product", "requested"), [(2, "NVIDIA-A100-SXM4-80GB", {"nvidia.com/gpu": "2"}), (0, None, {})]
)
def test_an_evaluation_is_one_pod_with_the_resources_of_its_step(
    gpus: int, product: str | None, requested: dict[str, str]
) -> None:
    resources = f"{{cpu: 3, memory: 20Gi, scratch: 7Gi, gpus: {gpus}, timeout_seconds: 600}}"
    config = load(CONFIGS / "imagenet256.yaml", [f"cluster.steps.evaluate={resources}", "cluster.job=pytorchjob"])
    evaluating = job_spec(config, "DiT-XL/2", "evaluate", "s3://bucket/dit", IMAGE)
    (replica,) = render_job(evaluating).job["spec"]["pytorchReplicaSpecs"].values()
    pod = replica["template"]["spec"]
    asked = {"cpu": "3", "memory": "20Gi", "ephemeral-storage": "7Gi", **requested}
    assert (replica["replicas"], pod["containers"][0]["resources"]["requests"]) == (1, asked)
    assert pod.get("nodeSelector", {}).get("nvidia.com/gpu.product") == product
    assert evaluating.cluster.deadline_seconds == 600
    assert evaluating.arguments[3:5] == ["dit", "evaluate"]


def test_an_indivisible_batch_or_a_local_root_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"global_batch=256 is not divisible by the 3 processes"):
        spec("cluster.replicas=3")
    with pytest.raises(InputError, match=r"root runs: .*s3://bucket/prefix"):
        job_spec(load(CONFIGS / "digits.yaml"), "mini-S/2", "train", "runs", IMAGE)
