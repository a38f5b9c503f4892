"""The images install only hashed versions of constraints.txt, and every package that a stage imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("docker/torch.txt", "docker/stages.txt", "mlflow/requirements.txt")
DOCKERFILES = ("Dockerfile", "mlflow/Dockerfile")
STAGES = ("prepare", "train", "sample", "evaluate", "report")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(file: str) -> dict[tuple[str, str], set[str]]:
    """(Name, version) -> hashes."""
    hashes: dict[tuple[str, str], set[str]] = {}
    for block in re.split(r"\n(?=\S)", (ROOT / file).read_text()):
        if match := re.match(r"([\w.-]+)==([^\s;]+)", block):
            hashes[canonical(match[1]), match[2]] = set(re.findall(r"sha256:[0-9a-f]{64}", block))
    return hashes


@pytest.mark.parametrize("file", LOCKS)
def test_what_an_image_installs_is_in_the_constraints_with_the_same_hashes(file: str) -> None:
    constraints = locked("constraints.txt")
    assert len(locked(file)) > 20
    for requirement, hashes in locked(file).items():
        assert hashes
        assert hashes == constraints[requirement], requirement


def test_the_stages_image_holds_every_dependency_of_the_project_and_no_tool() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(lines: list[str]) -> set[str]:
        return {canonical(re.split(r"[\[<>=~;! ]", line)[0]) for line in lines}

    installed = {name for name, _ in locked("docker/stages.txt")}
    assert names(project["dependencies"]) <= installed
    assert not names(project["optional-dependencies"]["dev"]) & installed


@pytest.mark.parametrize("image", ["docker/stages.txt", "mlflow/requirements.txt"])
def test_an_image_holds_no_package_of_its_list_of_unused_ones(image: str) -> None:
    unused = (ROOT / image).with_name("unused.txt").read_text().splitlines()
    names = {line for line in unused if not line.startswith("#")}
    assert len(names) >= 10
    assert not names & {name for name, _ in locked(image)}


def test_torch_has_a_layer_of_its_own_below_the_packages_and_the_code() -> None:
    text = (ROOT / "Dockerfile").read_text()
    order = [text.index(mark) for mark in ("docker/torch.txt", "docker/stages.txt", "/wheel/*.whl", "ARG VERSION")]
    assert order == sorted(order)
    assert {name for name, _ in locked("docker/torch.txt")} < {name for name, _ in locked("docker/stages.txt")}


def test_stages_and_launcher_import_no_package_that_their_image_leaves_out() -> None:
    modules = {"docker", "flask", "flask_cors", "graphene", "gunicorn", "huey", "matplotlib", "pandas", "pyarrow"}
    modules |= {"skops", "waitress"}
    imports = ["pipelines.step.step", "pipelines.definition.pipeline", "kubeflow.training"]
    imports += ["kfp.dsl.executor_main", "mlflow.store.tracking.sqlalchemy_store", "dit.tracking.shipper"]
    imports += [*(f"dit.stages.{stage}" for stage in STAGES)]
    import_without(modules, imports)


def test_the_server_imports_no_package_that_its_image_leaves_out() -> None:
    modules = {"contourpy", "docker", "fontTools", "gunicorn", "huey", "joblib", "kiwisolver", "matplotlib", "narwhals"}
    modules |= {"PIL", "prettytable", "pyarrow", "pyparsing", "scipy", "skops", "sklearn", "threadpoolctl", "wcwidth"}
    imports = ["mlflow.server.fastapi_app", "mlflow.server.auth.entities", "mlflow.server.auth.sqlalchemy_store"]
    imports += ["mlflow.server.handlers", "mlflow.store.artifact.s3_artifact_repo"]
    import_without(modules, imports)


def import_without(modules: set[str], imports: list[str]) -> None:
    # None in sys.modules makes an import fail as if the package were not installed.
    code = f"import sys; sys.modules.update(dict.fromkeys({modules!r})); import {', '.join(imports)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", DOCKERFILES)
def test_an_image_runs_as_a_numeric_user_and_keeps_no_secret(file: str) -> None:
    text = (ROOT / file).read_text()
    final = text.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", final, re.MULTILINE) == ["65532:65532"]
    assert re.search(r'^ENTRYPOINT \["', final, re.MULTILINE)
    base = re.findall(r"^ARG BASE_IMAGE=(\S+:\S+@sha256:[0-9a-f]{64})$", text, re.MULTILINE)
    assert re.findall(r"^BASE_IMAGE \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE) == base
    assert not re.search(r"^(ENV|COPY).*(ca\.crt|netrc|INDEX_URL)", text, re.MULTILINE)
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", final))
    assert labels == {"title", "description", "version", "revision"}
    assert all(line.count("--require-hashes") for line in final.splitlines() if "-r /requirements.txt" in line)


@pytest.mark.parametrize("file", [".ci/setup", *DOCKERFILES])
def test_uv_is_installed_by_hash(file: str) -> None:
    assert {name for name, _ in locked(".ci/tools.txt")} >= {"uv"}
    assert all(locked(".ci/tools.txt").values())
    text = (ROOT / file).read_text().replace("\\\n", "")
    installs = [line for line in text.splitlines() if re.search(r"\bpip install\b", line) and "uv" not in line]
    assert installs
    assert all("--require-hashes" in line and "tools.txt" in line for line in installs)


@pytest.mark.parametrize("setting", ["INDEX_URL", "PIP_INDEX_URL"])
def test_a_password_in_the_index_address_is_refused_and_not_repeated(setting: str) -> None:
    address = "https://user:planted-secret@127.0.0.1:9/simple"
    environment = {**os.environ, setting: address} if setting.startswith("PIP") else dict(os.environ)
    argument = [] if setting.startswith("PIP") else [f"{setting}={address}"]
    command = ["make", "build", "DOCKER=false", *argument]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "NETRC=FILE" in done.stderr
    assert "planted-secret" not in done.stdout + done.stderr


def test_the_server_image_has_a_health_check() -> None:
    assert re.search(r"^HEALTHCHECK .*\\\n\s+CMD \[", (ROOT / "mlflow/Dockerfile").read_text(), re.MULTILINE)


def test_the_build_context_holds_what_the_dockerfiles_copy_and_no_more() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    used: set[str] = set()
    for file in DOCKERFILES:
        text = (ROOT / file).read_text()
        for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
            used |= set(sources.split())
        used |= set(re.findall(r"type=bind,source=(?!/)([^,\s]+)", text))
    matched = {pattern for pattern in allowed for name in used if Path(name).match(pattern)}
    assert matched == allowed
    assert all(any(Path(name).match(pattern) for pattern in allowed) for name in used)


DOCKER = """#!/bin/sh
case "$*" in
    *RepoDigests*) printf '%s' "$REPO_DIGESTS" ;;
    *version*) echo 0.1.0-abc ;;
esac
"""
OURS, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def push(folder: Path, registry: str, digests: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `make push` with a fake engine that has these digests afterwards."""
    docker = folder / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    return subprocess.run(
        [str(ROOT / "docker/push"), "dit-scaling:0.1.0", registry, str(folder / "image.digest")],
        env={**os.environ, "DOCKER": str(docker), "REPO_DIGESTS": "".join(f"{digest}\n" for digest in digests)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("registry", "digests"),
    [
        ("localhost:5000", [f"localhost:5000/dit-scaling@{OURS}"]),
        # Pushed to several repositories, whose names may end alike.
        ("r.example/team", [f"r.example/team/dit-scaling@{OTHER}", f"r.example/team/dit-scaling@{OURS}"]),
        ("team", [f"team/dit-scaling@{OURS}", f"r.example/team/dit-scaling@{OTHER}"]),
        ("docker.io/team", [f"team/dit-scaling@{OURS}", f"r.example/team/dit-scaling@{OTHER}"]),
        ("docker.io/team", [f"docker.io/team/dit-scaling@{OURS}"]),
    ],
)
def test_a_push_writes_what_nodes_can_pull(registry: str, digests: list[str], tmp_path: Path) -> None:
    done = push(tmp_path, registry, digests)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "image.digest").read_text() == f"{registry}/dit-scaling@{OURS}\n"


@pytest.mark.parametrize("digests", [[], [f"elsewhere/dit-scaling@{OTHER}"]])
def test_a_push_without_a_digest_fails_and_writes_nothing(digests: list[str], tmp_path: Path) -> None:
    done = push(tmp_path, "r.example", digests)
    assert done.returncode == 1
    assert "no digest of r.example/dit-scaling:0.1.0-abc" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"docker"}
