"""The compiled pipeline: as a file for review, and what of a study and a submission it depends on.

python tests/platform/definition/test_pipeline.py  writes the golden file anew
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from dit.cli.commands import run
from dit.results.stages import milestones
from dit.study.study_file import load, load_text
from pipelines.compile import compile_study
from pipelines.definition.pipeline import SEPARATE_CHECKPOINTS, dataset_only

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "golden" / "pipeline-digits.yaml"
STUDIES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
IMAGE = "registry.example/dit-scaling@sha256:" + "0" * 64
TWO = "variants=[mini-S/2, mini-B/2]"
ONE = "variants=[mini-S/2]"
# Of many variants and checkpoints a file for review would say the same again and again.
SHORT = (ONE, "evaluation.at_steps=[1500]")


class Compiled:
    """A compiled pipeline, and ways to look at it."""

    def __init__(self, study: str, *overrides: str) -> None:
        self.config = load(ROOT / "configs" / f"{study}.yaml", overrides)
        with TemporaryDirectory() as folder:
            self.text = compile_study(self.config, "s3://bucket/dit", IMAGE, Path(folder) / "new/it.yaml").read_text()
        self.pipeline, self.platform = yaml.load_all(self.text, Loader=yaml.CSafeLoader)
        self.tasks: dict[str, Any] = self.pipeline["root"]["dag"]["tasks"]

    def task(self, name: str) -> dict[str, Any]:
        (found,) = (task for task in self.tasks.values() if task["taskInfo"]["name"] == name)
        return dict(found)

    def names(self) -> list[str]:
        return [task["taskInfo"]["name"] for task in self.tasks.values()]

    def waits_for(self, name: str) -> set[str]:
        return {self.tasks[key]["taskInfo"]["name"] for key in self.task(name).get("dependentTasks", [])}

    def given(self, name: str) -> dict[str, Any]:
        """A task's inputs: constants as they are, parameters of the pipeline as $NAME, a step's output as STEP's."""
        found: dict[str, Any] = {}
        for key, value in self.task(name)["inputs"]["parameters"].items():
            constant = value.get("runtimeValue", {}).get("constant")
            if (output := value.get("taskOutputParameter")) is not None:
                constant = f"{output['producerTask']}'s"
            found[key] = constant if constant is not None else f"${value['componentInputParameter']}"
        return found

    def container(self, name: str) -> dict[str, Any]:
        return dict(self.pipeline["deploymentSpec"]["executors"][self._executor(name)]["container"])

    def settings(self, name: str) -> dict[str, Any]:
        executors = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        return dict(executors[self._executor(name)])

    def _executor(self, name: str) -> str:
        component = self.task(name)["componentRef"]["name"]
        return str(self.pipeline["components"][component]["executorLabel"])


compiled_once = cache(Compiled)


@pytest.fixture
def digits() -> Compiled:
    return compiled_once("digits")


def test_the_pipeline_of_the_digits_is_as_reviewed() -> None:
    assert Compiled("digits", *SHORT).text == GOLDEN.read_text()


def before_the_report(compiled: Compiled) -> list[str]:
    """Prepare and merge."""
    count = compiled.config.cluster.steps.parts
    return [*(f"prepare {k}/{count}" for k in range(1, count + 1)), "merge"]


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_compiles_to_all_its_steps(study: str) -> None:
    compiled = compiled_once(study)
    prepared, variants = before_the_report(compiled), compiled.config.variants
    parts = len(milestones(compiled.config))
    whole = parts * len(variants) > SEPARATE_CHECKPOINTS
    of = [""] if whole else [f" {part}/{parts}" for part in range(1, parts + 1)]
    steps = [f"variant {name}{part}" for name in variants for part in of]
    assert sorted(compiled.names()) == sorted([*prepared, *steps, "report"])
    assert compiled.waits_for("merge") == {*prepared} - {"merge"}
    assert compiled.waits_for("report") == {"merge", *(f"variant {name}{of[-1]}" for name in variants)}
    # The text is in one step; all later ones take the address under which that one stores it.
    assert load_text(compiled.given("merge")["study"]) == compiled.config
    assert {compiled.given(name)["study"] for name in (*steps, "report")} == {"merge's"}
    # A pod that installs something needs an index, and takes another version tomorrow.
    assert "pip install" not in compiled.text


@pytest.mark.parametrize(
    ("overrides", "stages", "parts"),
    [
        ((ONE,), ("train", "sample", "evaluate"), 3),
        ((TWO,), ("variant",), 3),
        (("variants=[mini-S/2, mini-B/2, mini-L/2, mini-XL/2]",), ("variant",), 3),
        (("evaluation.at_steps=[1500]",), ("train", "sample", "evaluate"), 1),
        ((ONE, "evaluation.at_steps=[700]"), ("train", "sample", "evaluate"), 2),
    ],
)
def test_each_checkpoint_is_done_before_the_training_goes_on(
    overrides: tuple[str, ...], stages: tuple[str, ...], parts: int
) -> None:
    compiled = Compiled("digits", "cluster.steps.variants_at_a_time=9", *overrides)
    ends = []
    for variant in compiled.config.variants:
        before = "merge"
        for part in range(1, parts + 1):
            for stage in stages:
                name = f"{stage} {variant}" + (f" {part}/{parts}" if parts > 1 else "")
                assert compiled.waits_for(name) == {"merge", before}
                assert {"part": part, "parts": parts}.items() <= compiled.given(name).items()
                before = name
        ends.append(before)
    assert compiled.waits_for("report") == {"merge", *ends}
    assert len(compiled.names()) == 4 + len(ends) * len(stages) * parts


def test_what_a_person_changes_is_a_parameter_and_the_study_is_none(digits: Compiled) -> None:
    parameters = digits.pipeline["root"]["inputDefinitions"]["parameters"]
    assert {name: one["defaultValue"] for name, one in parameters.items()} == {
        "root": "s3://bucket/dit",
        "steps": 1500,
        "cfg": 1.0,
        "samples": 1000,
        "seed": 0,
        "overrides": [],
    }
    for name in digits.names():
        assert digits.container(name)["image"] == IMAGE
        shared = {key: value for key, value in digits.given(name).items() if key in parameters}
        assert shared == {key: f"${key}" for key in shared}
        if name == "merge":
            assert shared.keys() == {"root", "steps", "cfg", "samples", "seed", "overrides"}


def test_text_of_a_study_is_no_template() -> None:
    """kfp and Argo replace {{...}} wherever it stands."""
    text = "{{workflow.name}} {{$.inputs}} {{{{secrets.x}}"
    compiled = Compiled("digits", f"description={json.dumps(text)}")
    assert "workflow.name" in compiled.text
    templates = set(re.findall(r"{{.*?}}", compiled.text))
    assert templates == set(re.findall(r"{{.*?}}", compiled_once("digits").text))
    study = json.loads(compiled.given("merge")["study"])
    assert study["description"] == text


def test_only_the_parts_of_the_preparation_are_cached(digits: Compiled) -> None:
    cached = {name for name in digits.names() if digits.task(name)["cachingOptions"].get("enableCache")}
    assert cached == {"prepare 1/2", "prepare 2/2"}


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("train.learning_rate=0.1", True),
        ("train.seed=3", True),
        (TWO, True),
        ("description=other words", True),
        ("cluster.replicas=4", True),
        ("sampling.num_samples=10", True),
        ("dataset.name=others", False),
        ("dataset.shuffle_seed=1", False),
        ("dataset.samples_per_shard=256", False),
    ],
)
def test_a_part_is_taken_from_the_cache_when_its_shards_would_be_the_same(
    digits: Compiled, override: str, same: bool
) -> None:
    other = load(ROOT / "configs/digits.yaml", [override])
    assert (dataset_only(other) == dataset_only(digits.config)) is same
    assert dataset_only(other).dataset_hash() == other.dataset_hash()


def test_what_decides_the_shards_is_the_key_of_a_parts_cache(digits: Compiled) -> None:
    key = digits.given("prepare 1/2")
    assert load_text(key.pop("dataset_study")) == dataset_only(digits.config)
    # kfp itself adds the image of the container.
    assert key == {"root": "$root", "overrides": "$overrides", "part": 1, "parts": 2}
    assert digits.given("prepare 2/2") == digits.given("prepare 1/2") | {"part": 2}


def test_each_seed_of_a_variant_has_steps_of_its_own_which_take_turns() -> None:
    compiled = Compiled("digits", *SHORT, "seeds=2")
    trained, other = "train mini-S/2", "train mini-S/2 seed 1"
    assert [compiled.given(name)["variant"] for name in (trained, other)] == ["mini-s-2", "mini-s-2-seed-1"]
    assert compiled.waits_for(other) == {"merge", "sample mini-S/2"}
    assert compiled.waits_for("report") == {"merge", "evaluate mini-S/2", "evaluate mini-S/2 seed 1"}


def test_checkpoints_of_all_seeds_count_for_the_size_of_a_run() -> None:
    titles = [Compiled("digits", *SHORT, f"seeds={seeds}").names() for seeds in (5, 6)]
    assert ["train mini-S/2 seed 4" in names for names in titles] == [True, False]
    assert "variant mini-S/2 seed 5" in titles[1]


@pytest.mark.parametrize(
    ("override", "turns"),
    [("cluster.replicas=8", 1), ("cluster.queue=gpus", 9), ("cluster.steps.variants_at_a_time=2", 2)],
)
def test_variants_take_turns_where_nothing_starts_jobs_whole(override: str, turns: int) -> None:
    """So many at a time as the study says: one, if it says nothing."""
    compiled = Compiled("digits", override)
    steps = [f"variant {name}" for name in compiled.config.variants]
    waits = [compiled.waits_for(step) - {"merge"} for step in steps]
    assert waits == [set() if number < turns else {steps[number - turns]} for number in range(len(steps))]


def test_a_variant_waits_for_the_last_job_of_another_and_not_for_its_evaluation() -> None:
    compiled = Compiled("digits", TWO, "evaluation.at_steps=[1500]")
    assert compiled.waits_for("train mini-B/2") == {"merge", "sample mini-S/2"}


def test_steps_with_gpus_go_where_these_are_and_launchers_do_not() -> None:
    imagenet = Compiled("imagenet256", "variants=[DiT-B/2]", "fit_by_variant={}")
    resources = imagenet.container("prepare 1/16")["resources"]
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert resources["accelerator"]["resourceCount"] == "1"
    assert (resources["resourceCpuRequest"], resources["resourceMemoryLimit"]) == ("8", "32Gi")
    assert "resourceCpuLimit" not in resources
    disks = {step: imagenet.settings(step)["emptyDirMounts"][0]["sizeLimit"] for step in ("prepare 1/16", "merge")}
    assert disks == {"prepare 1/16": "200Gi", "merge": "10Gi"}
    placed = imagenet.settings("evaluate DiT-B/2 1/5")
    assert placed["nodeSelector"] == {"labels": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}}
    assert placed["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    launcher = imagenet.settings("train DiT-B/2 1/5")
    assert not launcher.keys() & {"nodeSelector", "tolerations"}
    assert "accelerator" not in imagenet.container("train DiT-B/2 1/5")["resources"]
    assert imagenet.container("train DiT-B/2 1/5")["resources"]["resourceMemoryLimit"] == "1Gi"


def test_the_rest_of_the_cluster_section_reaches_the_pods() -> None:
    compiled = Compiled(
        "digits",
        "cluster.steps.report={cpu: 1.5, memory: 1.5Gi, shared_memory: 64Mi, timeout_seconds: 600}",
        "cluster.steps.retries=0",
        "cluster.image_pull_secrets=[registry]",
        "cluster.env={AWS_REGION: elsewhere, NCCL_DEBUG: WARN}",
        TWO,
    )
    container, settings = compiled.container("report"), compiled.settings("report")
    assert container["resources"]["resourceCpuRequest"] == "1.5"
    assert container["resources"]["resourceMemoryLimit"] == str(3 << 29)
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert variables["AWS_REGION"] == "elsewhere"
    assert variables["NCCL_DEBUG"] == "WARN"
    assert variables["OMP_NUM_THREADS"] == "1"
    assert [one["envVar"] for one in settings["configMapAsEnv"][0]["keyToEnv"]] == [
        "AWS_ENDPOINT_URL_S3",
        "MLFLOW_TRACKING_URI",
    ]
    assert settings["activeDeadlineSeconds"] == "600"
    assert [one["secretName"] for one in settings["imagePullSecret"]] == ["registry"]
    assert "retryPolicy" not in compiled.task("report")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["compile", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dit: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_local_root_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    study, output = str(ROOT / "configs/digits.yaml"), str(tmp_path / "file.yaml")
    for root in ("runs", "file:///runs", "s3://"):
        assert "s3://bucket/prefix" in refused([study, "--root", root, "--image", IMAGE, "--output", output], capsys)
    assert not Path(output).exists()


@pytest.mark.parametrize(
    "image", ["registry.example/dit:0.1", "registry.example/dit@sha256:0123", "@sha256:" + "0" * 64]
)
def test_an_image_that_may_be_another_one_tomorrow_is_refused(
    image: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study, output = str(ROOT / "configs/digits.yaml"), tmp_path / "file.yaml"
    said = refused([study, "--root", "s3://bucket", "--image", image, "--output", str(output)], capsys)
    assert f"image {image}: " in said
    assert "NAME@sha256:" in said
    assert not output.exists()


def test_without_a_pushed_image_the_next_command_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(ROOT / "configs/digits.yaml"), "--root", "s3://bucket", "--output", "study.yaml"]
    assert "make build push REGISTRY=" in refused(arguments, capsys)
    (tmp_path / "build").mkdir()
    (tmp_path / "build/image.digest").write_text(f"{IMAGE}\n")
    assert run(["compile", *arguments, "--set", TWO]) == 0
    assert capsys.readouterr().out == "study.yaml\n"
    pipeline = next(yaml.safe_load_all((tmp_path / "study.yaml").read_text()))
    executors = pipeline["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {IMAGE}


@pytest.mark.parametrize(
    "command",
    [
        ["plan"],
        ["compile", "--root", "s3://bucket/dit", "--image", IMAGE],
        ["preflight", "--root", "s3://bucket/dit"],
        ["submit", "--root", "s3://bucket/dit", "--image", IMAGE, "--endpoint", "http://127.0.0.1:9"],
    ],
    ids=lambda command: command[0],
)
def test_a_job_that_cannot_share_the_batch_is_refused_before_anything_is_prepared(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    study = [str(ROOT / "configs" / "digits.yaml"), "--set", "cluster.replicas=3"]
    assert run([command[0], *study, *command[1:]]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "train.global_batch=64 is not divisible by the 3 processes of cluster.replicas" in errors


if __name__ == "__main__":
    compile_study(load(ROOT / "configs/digits.yaml", SHORT), "s3://bucket/dit", IMAGE, GOLDEN)
