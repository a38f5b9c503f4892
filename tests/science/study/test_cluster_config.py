"""The cluster section: its defaults, its mistakes, and that no result depends on it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dit.errors import ConfigError
from dit.study.cluster import ClusterConfig, quantity
from dit.study.config import StudyConfig
from dit.study.study_file import load, load_text

SECRETS = ("MLFLOW_TRACKING_PASSWORD", "PGPASSWORD", "mysql_pwd", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN")
SECRETS += ("GH_PAT", "SMTP_PASS", "SSH_PASSPHRASE", "SENTRY_DSN", "HTTP_AUTH", "GCP_CREDENTIALS_JSON", "SECRET_2")
LOADS_CODE = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "BASH_ENV", "CXX", "TRITON_PTXAS_PATH")
ADDRESSES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI", "https_proxy", "ALL_PROXY")
CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", Decimal("0.5")),
        ("4", Decimal(4)),
        ("1.5", Decimal("1.5")),
        ("2k", 2000),
        ("2Ki", 2048),
        ("3Gi", 3 << 30),
    ],
)
def test_a_quantity_is_read_as_kubernetes_reads_it(text: str, value: Decimal | int) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["", "0", "0Gi", "-1", "4 Gi", "4gi", "4KB", "many"])
def test_a_text_that_is_not_a_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="quantity above 0"):
        quantity(text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.replica=4", "did you mean cluster.replicas"),
        ("cluster.replicas=0", "cluster.replicas=0"),
        ("cluster.job=mpijob", "pytorchjob"),
        ("cluster.pod.memory=64G i", "quantity above 0"),
        ("cluster.pod.shared_memory=64Gi", "must be below memory"),
        ("cluster.env={WORLD_SIZE: 8}", "set by the operator"),
        ("cluster.env={PET_NNODES: 8}", "set by the operator"),
        *((f"cluster.env={{{name}: x}}", f"{name} would load code") for name in LOADS_CODE),
        *((f"cluster.env={{{name}: 'http://theirs:1'}}", f"{name} is an address") for name in ADDRESSES),
        ("cluster.env={AWS_SECRET_ACCESS_KEY: x}", "cluster.secrets"),
        *((f"cluster.env={{{name}: x}}", "cluster.secrets") for name in SECRETS),
        ("cluster.env={A: '-----BEGIN PRIVATE KEY-----'}", "cluster.secrets"),
        ("cluster.env={VERSION: 1.10}", "put it in quotes"),
        ("cluster.env={1A: x}", "cluster.env"),
        ("cluster.secrets=[Upper]", "cluster.secrets"),
        ("cluster.tolerations=[{key: a, operator: Equal}]", "needs a value"),
        ("cluster.tolerations=[{key: a, value: b}]", "takes none"),
        ("cluster.gpus_per_pod=0", "but gpus_per_pod=0"),
        ("cluster.node_selector={nvidia.com/gpu.product: T4}", "remove one"),
        ("cluster.patience.hopeless=100000", "longer than start"),
    ],
)
def test_an_impossible_value_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(CONFIGS / "imagenet256.yaml", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_stand_for_quantities_and_variables() -> None:
    config = load(CONFIGS / "digits.yaml", ["cluster.pod.cpu=2", "cluster.env={NCCL_DEBUG_LEVEL: 1}"])
    assert config.cluster.pod.cpu == "2"
    assert config.cluster.env == {"NCCL_DEBUG_LEVEL": "1"}
    assert load_text(config.to_yaml()) == config


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "NO_PROXY", "PYTHONHASHSEED", "NCCL_IB_PKEY", "KEYMAP", "OMP_NUM_THREADS"]
)
def test_an_ordinary_variable_is_taken(name: str) -> None:
    assert load(CONFIGS / "digits.yaml", [f"cluster.env={{{name}: x}}"]).cluster.env == {name: "x"}


def test_a_process_for_each_gpu_and_one_without() -> None:
    assert ClusterConfig(replicas=4, gpus_per_pod=2).world_size == 8
    assert ClusterConfig(replicas=4, gpus_per_pod=0).world_size == 4


def hashes(config: StudyConfig) -> list[Any]:
    per_variant = [
        [config.training_hash(run), config.sampling_hash(run), config.evaluation_hash(run)] for run in config.runs
    ]
    return [config.dataset_hash(), config.science_hash(), *per_variant]


def test_no_result_depends_on_the_cluster() -> None:
    path = CONFIGS / "imagenet256.yaml"
    assert hashes(load(path)) == hashes(load(path, ["cluster.replicas=4", "cluster.pod.cpu=1", "cluster.job=trainjob"]))


def test_one_value_of_a_step_leaves_its_others_as_they_are() -> None:
    steps = ClusterConfig.model_validate({"steps": {"prepare": {"memory": "64Gi"}, "launch": {"cpu": 1}}}).steps
    assert (steps.prepare.memory, steps.prepare.gpus, steps.prepare.scratch) == ("64Gi", 1, "200Gi")
    assert (steps.launch.cpu, steps.launch.memory) == ("1", "1Gi")
