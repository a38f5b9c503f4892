"""The manifests of jobs: compared with the published CRDs, Pod Security and a golden file.

python tests/platform/jobs/test_job_manifests.py   writes the golden file
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import violations

from dit.study.study_file import load
from pipelines.jobs.kind import Rendered
from pipelines.jobs.registry import render_job
from pipelines.jobs.spec import STUDY_PATH, job_spec

ROOT = Path(__file__).parents[3]
CRDS = next((folder for parent in ROOT.parents if (folder := parent / "shared" / "crds").is_dir()), None)
GOLDEN = Path(__file__).parent / "golden" / "pytorchjob-imagenet256-dit-xl-2.yaml"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
IMAGE = "registry.example/dit-scaling@sha256:" + "0" * 64


def rendered(study: str, *overrides: str, variant: str | None = None, stage: Any = "train") -> Rendered:
    config = load(ROOT / "configs" / f"{study}.yaml", overrides)
    return render_job(job_spec(config, variant or config.variants[-1], stage, "s3://bucket/dit", IMAGE))


@cache
def strict_schema(kind: str) -> dict[str, Any]:
    """The CRD's schema, strict about unknown keys, which Kubernetes would drop silently."""
    if CRDS is None:
        pytest.skip("no shared/crds beside the project: manifests are not checked against the published CRDs")
    file = next(path for path in CRDS.glob("*.yaml") if path.stem.split("_")[1] == f"{kind.lower()}s")
    version = yaml.safe_load(file.read_text())["spec"]["versions"][0]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    # A CRD does not describe metadata, which Kubernetes checks itself.
    schema["properties"]["metadata"] = {"type": "object"}
    return tighten(schema)


def tighten(schema: Any) -> Any:
    if isinstance(schema, list):
        return [tighten(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tight = {key: tighten(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        tight.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        tight.pop("type", None)
        tight["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return tight


def problems(manifest: dict[str, Any]) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(strict_schema(manifest["kind"]))
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize("study", [path.stem for path in CONFIGS])
@pytest.mark.parametrize("job", ["pytorchjob", "trainjob"])
@pytest.mark.parametrize("stage", ["train", "sample", "evaluate"])
def test_manifests_of_every_study_match_the_crds(study: str, job: str, stage: str) -> None:
    result = rendered(study, f"cluster.job={job}", "cluster.deadline_seconds=1000", stage=stage)
    for manifest in (result.job, *(companion for _, companion in result.companions)):
        assert problems(manifest) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("runPolicy", "cleanPodPolcy"), "Running"),
        (("pytorchReplicaSpecs", "Worker", "replicas"), "8"),
        (("pytorchReplicaSpecs", "Worker", "template", "spec", "resourcs"), {}),
    ],
)
def test_the_schema_check_finds_a_typing_error(place: tuple[str, ...], value: Any) -> None:
    node = (manifest := rendered("imagenet256").job)["spec"]
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    assert len(problems(manifest)) == 1


def test_the_pytorchjob_of_the_largest_model_equals_the_golden_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the launcher's environment gets into its pods."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "of-the-step")
    assert rendered("imagenet256", variant="DiT-XL/2").job == yaml.safe_load(GOLDEN.read_text())


def pod_templates(study: str, *overrides: str) -> list[tuple[str, dict[str, Any]]]:
    job = rendered(study, *overrides).job
    train = rendered(study, *overrides, "cluster.job=trainjob")
    node = train.companions[0][1]["spec"]["template"]["spec"]["replicatedJobs"][0]
    return [
        ("pytorch", job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]),
        ("node", node["template"]["spec"]["template"]),
    ]


@pytest.mark.parametrize("study", [path.stem for path in CONFIGS])
def test_pods_are_restricted_and_can_write_where_they_must(study: str) -> None:
    for name, template in pod_templates(study):
        pod, (container,) = template["spec"], template["spec"]["containers"]
        assert container["name"] == name
        assert violations(pod) == []
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts) == {"/tmp", "/dev/shm", str(Path(STUDY_PATH).parent)}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert template["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"


def test_the_pods_of_both_kinds_run_the_same_program() -> None:
    (_, one), (_, other) = pod_templates("imagenet256")
    first, second = one["spec"]["containers"][0], other["spec"]["containers"][0]
    same = ("image", "command", "args", "resources", "volumeMounts", "securityContext")
    assert {key: first[key] for key in same} == {key: second[key] for key in same}
    assert [item for item in second["env"] if item["name"] != "PET_RDZV_CONF"] == first["env"]


@pytest.mark.parametrize("study", ["imagenet256", "imagenet256-52k"])
def test_the_documented_overrides_give_one_pod_per_node(study: str) -> None:
    text = (ROOT / "configs" / f"{study}.yaml").read_text()
    overrides = text.partition('SET="')[2].partition('"')[0].split()
    job = rendered(study, *overrides).job
    assert problems(job) == []
    spec, worker = job["spec"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert (spec["nprocPerNode"], worker["replicas"]) == ("8", 1)
    assert (spec["elasticPolicy"]["minReplicas"], spec["elasticPolicy"]["maxReplicas"]) == (1, 1)
    container = worker["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"memory": "512Gi", "nvidia.com/gpu": "8"}
    assert {"name": "OMP_NUM_THREADS", "value": "8"} in container["env"]
    train = rendered(study, *overrides, "cluster.job=trainjob").job
    assert problems(train) == []
    assert (train["spec"]["trainer"]["numNodes"], train["spec"]["trainer"]["numProcPerNode"]) == (1, 8)


@pytest.mark.parametrize(("replicas", "limit"), [(8, 24), (32, 96)])
def test_the_backoff_limit_counts_incidents_not_pods(replicas: int, limit: int) -> None:
    """The operator counts the restarts of all pods."""
    job = rendered("imagenet256", f"cluster.replicas={replicas}", "cluster.backoff_limit=3").job
    assert job["spec"]["runPolicy"]["backoffLimit"] == limit


def test_the_grace_period_leaves_time_for_a_checkpoint() -> None:
    for _, template in pod_templates("imagenet256", "cluster.pod.grace_seconds=120"):
        spec = template["spec"]
        env = {item["name"]: item.get("value") for item in spec["containers"][0]["env"]}
        assert spec["terminationGracePeriodSeconds"] == 120
        assert 100 < int(env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < 120


def test_pods_wait_for_missing_pods_longer_than_the_launcher() -> None:
    """`read_timeout` keeps its default: it would also lengthen the wait for a pod that has died."""
    job, patience = rendered("imagenet256").job, load(ROOT / "configs" / "imagenet256.yaml").cluster.patience
    conf = {item["key"]: int(item["value"]) for item in job["spec"]["elasticPolicy"]["rdzvConf"]}
    assert conf.keys() == {"join_timeout"}
    assert conf["join_timeout"] > patience.start
    (_, node) = pod_templates("imagenet256")[1]
    env = {item["name"]: item.get("value") for item in node["spec"]["containers"][0]["env"]}
    key, _, seconds = env["PET_RDZV_CONF"].partition("=")
    assert key == "timeout"
    assert int(seconds) > patience.start


def test_a_trainjob_keeps_a_failed_pod_and_fails_at_once() -> None:
    result = rendered("digits", "cluster.job=trainjob")
    ((_, runtime),) = result.companions
    assert result.job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"] == result.job["metadata"]["name"]
    jobset = runtime["spec"]["template"]["spec"]
    assert jobset["failurePolicy"] == {"maxRestarts": 0}
    node = jobset["replicatedJobs"][0]["template"]["spec"]
    assert node["backoffLimit"] == 0
    assert node["template"]["spec"]["restartPolicy"] == "Never"


if __name__ == "__main__":
    GOLDEN.write_text(yaml.safe_dump(rendered("imagenet256", variant="DiT-XL/2").job, sort_keys=False, width=120))
