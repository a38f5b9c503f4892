"""The command line: a mistake of the user is one line on stderr and exit code 2, before any work."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from study_records import fill_dataset

from dit.cli.commands import run
from dit.storage import open_store
from dit.study import layout
from dit.study.study_file import load

DIGITS = "configs/digits.yaml"
IMAGENET = "configs/imagenet256.yaml"
STAGES = ("prepare", "train", "sample", "evaluate", "report", "study")


@pytest.fixture(autouse=True)
def _from_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setenv("DIT_ROOT", str(tmp_path / "runs"))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line that a command refuses its arguments with."""
    assert run(arguments) == code
    output, errors = capsys.readouterr()
    assert output == ""
    assert re.fullmatch(r"dit: [^\n]+\n", errors)
    return errors


@pytest.mark.parametrize("command", ["show", "plan", *STAGES])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["none.yaml"], "none.yaml"),
        ([DIGITS, "--set", "train.stepps=3"], "did you mean train.steps?"),
        ([DIGITS, "--set", "train.steps"], "--set train.steps: must read key.path=value"),
        ([DIGITS, "--set", "train.learning_rate=-1"], "train.learning_rate=-1"),
        ([DIGITS, "--set", "variants=[mini-XXL/2]"], "'mini-XXL/2' is not a known variant (did you mean mini-XL/2"),
        ([DIGITS, "--set", "variants=[mini-S/8, mini-S/3]"], "mini-S/3"),
        ([IMAGENET, "--set", "dataset.image_size=264"], "a latent of side 33, which 2 does not divide"),
        ([DIGITS, "--set", "train.steps=800", "--set", "evaluation.at_steps=[801]"], "train.steps=800 never reaches"),
        ([], "Missing argument 'STUDY'"),
        ([DIGITS, "--sett", "train.steps=3"], "No such option: --sett"),
        ([DIGITS, "extra"], "unexpected extra argument"),
    ],
)
def test_every_command_refuses_a_bad_study(
    command: str, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert named in refused([command, *arguments], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
@pytest.mark.parametrize(
    ("variant", "named"),
    [
        ("DiT-XL/2", "DiT-XL/2 is not in study digits, which has mini-S/2"),
        ("XL/2", "'XL/2' is not a known variant (did you mean mini-XL/2?); the study has mini-S/2"),
    ],
)
def test_a_variant_that_the_study_does_not_have_is_refused(
    command: str, variant: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refused([command, DIGITS, "--variant", variant], capsys)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["sample", DIGITS, "--seed", "4"], "seed 4: is not in study digits, which has 0, 1"),
        (["import", "a.pt", DIGITS, "--variant", "mini-S/2"], "mini-S/2 has several seeds, 0, 1; choose one, such as"),
        (
            ["sample", DIGITS, "--variant", "mini-S/2", "--step", "500", "--labels", "1"],
            "one --variant, one --seed and",
        ),
        (["train", DIGITS, "--variant", "mini-S/2", "--seed", "1"], "run `dit prepare STUDY`"),
    ],
)
def test_a_seed_is_chosen_by_its_option(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert named in refused([*words, "--set", "seeds=2", "--root", str(tmp_path)], capsys)


@pytest.mark.parametrize("part", ["0/0", "0/4", "5/4", "1/0", "-1/4", "1", "a/b", "1/4/2", "", "1.5/2", "1/2\n"])
def test_a_part_that_is_not_valid_is_refused(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "such as --part 3/16" in refused(["prepare", DIGITS, "--part", part], capsys)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["prepare", DIGITS, "--part", "1/2", "--merge"], "--merge"),
        (["sample", DIGITS, "--export-adm", "a.npz"], "--export-adm"),
        (["sample", DIGITS, "--export-adm", "a.npz", "--variant", "mini-S/2"], "--export-adm"),
        (["sample", DIGITS, "--export-adm", "a.npz", "--step", "1000"], "--export-adm"),
        (["sample", DIGITS, "--step", "0"], "--step"),
        (["sample", DIGITS, "--step", "-5"], "--step"),
        (["sample", DIGITS, "--step", "many"], "--step"),
        (["study", DIGITS, "--runner", "kind"], "'kind' is not one of 'local', 'docker'"),
        (["study", DIGITS, "--image", "x"], "used only with --runner docker"),
        (["trian", DIGITS], "No such command 'trian'"),
    ],
)
def test_an_option_that_is_not_valid_is_refused_by_name(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refused(arguments, capsys)


@pytest.mark.parametrize("place", ["/dev/null/a.npz", "/proc/none/a.npz", "docs"])
def test_an_export_that_cannot_be_written_is_refused_before_any_work(
    place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    named = ["--variant", "mini-S/2", "--step", "1500", "--export-adm", place]
    assert f"--export-adm {place}: " in refused(["sample", DIGITS, *named], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", STAGES)
@pytest.mark.parametrize("root", ["ftp://host/x", "s3://"])
def test_a_root_that_is_not_a_store_is_refused(command: str, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{root}: is not a store address" in refused([command, DIGITS, "--root", root], capsys)


@pytest.mark.parametrize("command", ["prepare", "study"])
@pytest.mark.parametrize(
    ("root", "named"), [("/dev/null/x", "not writable"), ("/proc/none", "not writable"), ("Makefile", "is a file")]
)
def test_a_root_that_cannot_be_written_is_refused(
    command: str, root: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{root}: {named}" in refused([command, DIGITS, "--root", root], capsys)


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "report"])
def test_a_stage_without_its_input_names_the_command_to_run(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "dit prepare" in refused([command, DIGITS], capsys)
    assert list(tmp_path.iterdir()) == []
    fill_dataset(open_store(tmp_path / "runs"), load(DIGITS))
    if command != "train":
        assert "dit train" in refused([command, DIGITS], capsys)


def test_a_missing_autoencoder_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    absent = tmp_path / "none"
    line = refused(["prepare", IMAGENET, "--set", f"dataset.codec.weights={absent}"], capsys)
    assert f"{absent}: no such folder; put it there" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["evaluation.extractor_weights", "evaluation.reference.path"])
def test_a_study_checks_the_files_of_its_evaluation_before_it_prepares_or_trains(
    key: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights, absent = tmp_path / "weights.pth", tmp_path / "none"
    weights.write_bytes(b"weights")
    files = {
        "evaluation.extractor_weights": weights,
        "evaluation.extractor_sha256": hashlib.sha256(b"weights").hexdigest(),
        key: absent,
    }
    overrides = [argument for name, value in files.items() for argument in ("--set", f"{name}={value}")]
    assert str(absent) in refused(["study", IMAGENET, *overrides], capsys)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["weights.pth"]


def test_a_batch_that_processes_or_devices_cannot_share_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uneven = ["configs/imagenet256.yaml", "--set", "train.global_batch=64", "--set", "plan.count=3"]
    assert "train.global_batch=64 is not divisible by plan.count=3" in refused(["plan", *uneven], capsys)
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "train.global_batch=64 is not divisible by world_size=3" in refused(["train", *uneven], capsys)


def test_a_record_of_another_schema_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, config = open_store(tmp_path / "runs"), load(DIGITS)
    key = f"{layout.dataset(config)}/{layout.MANIFEST}"
    store.write(key, b'{"schema_version": 99}')
    for command in ("study", "train"):
        assert f"{key}: schema version 99" in refused([command, DIGITS], capsys)


def test_without_a_command_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Stages" in capsys.readouterr().out


def test_show_prints_a_study_that_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", DIGITS, "--set", "train.seed=7"]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    assert load(tmp_path / "again.yaml") == load(DIGITS, ["train.seed=7"])


def test_plan_names_every_variant_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "configs/imagenet256.yaml"]) == 0
    output = capsys.readouterr().out
    for known in ("DiT-B/2", "131 M", "DiT-XL/2", "675 M", "118.6", "A100-80G"):
        assert known in output
    assert list(tmp_path.iterdir()) == []


def test_an_error_names_its_rank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert refused(["show", "none.yaml"], capsys).endswith(" (rank 3)\n")


def test_a_bug_keeps_its_traceback() -> None:
    code = "import dit.cli.commands, dit.study.study_file; dit.study.study_file.load = None; dit.cli.commands.main()"
    done = subprocess.run([sys.executable, "-c", code, "show", DIGITS], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -m dit show configs/imagenet256.yaml | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "study: imagenet256\n"
    assert "Traceback" not in done.stderr


def test_ctrl_c_is_one_line_and_130(tmp_path: Path) -> None:
    fifo = tmp_path / "study.yaml"
    os.mkfifo(fifo)
    # A test run in the background hands down an ignored SIGINT, which a terminal never does.
    process = subprocess.Popen(
        [sys.executable, "-m", "dit", "show", str(fifo)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with open(fifo, "w"):  # returns when the command has opened it for reading
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=500)
    assert process.returncode == 130
    assert re.fullmatch(r"dit: interrupted[^\n]+\n", errors)


def test_help_and_mistakes_load_no_framework() -> None:
    """torch takes seconds to load."""
    code = (
        "import sys, dit.cli.commands; code = dit.cli.commands.run(sys.argv[1:]);"
        "heavy = {'torch', 'kfp', 'kubernetes', 'mlflow', 'boto3', 'diffusers', 'webdataset'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    wrong = ["--set", "train.steps=0"]
    refused = (
        ["train", DIGITS, *wrong],
        ["train", DIGITS, "--variant", "x"],
        ["submit", DIGITS, "--root", "r", *wrong],
    )
    for arguments in (["--help"], ["submit", "--help"], *refused):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert "imported" not in done.stderr, done.stderr
        assert done.returncode == (2 if arguments in refused else 0)
