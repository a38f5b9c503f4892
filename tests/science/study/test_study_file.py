"""The study file: values are read as written, and a mistake is one line with its key."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dit.errors import ConfigError, MissingError
from dit.study.config import StudyConfig
from dit.study.study_file import load, load_text
from dit.study.variants import VARIANTS, resolve

MINIMAL: dict[str, Any] = {
    "study": "small",
    "dataset": {
        "name": "pictures",
        "source": {"kind": "folder", "path": "/data"},
        "codec": {"kind": "vae", "weights": "/vae"},
        "image_size": 256,
        "classes": 1000,
    },
    "variants": ["DiT-S/8", "DiT-XL/2"],
    "train": {"steps": 100},
    "evaluation": {"at_steps": [50, 100]},
}


def tree(**changes: Any) -> dict[str, Any]:
    """MINIMAL with dotted keys, `__` for the dot, replaced."""
    result = copy.deepcopy(MINIMAL)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return result


def parse(overrides: list[str] | None = None, **changes: Any) -> StudyConfig:
    return load_text(yaml.safe_dump(tree(**changes)), overrides or [], where="a.yaml")


def refusal(read: Callable[..., StudyConfig], *arguments: Any, **options: Any) -> str:
    """The one line with which a study is refused."""
    with pytest.raises((ConfigError, MissingError)) as caught:
        read(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


steps = st.integers(1, 10**7)
studies = st.builds(
    tree,
    variants=st.lists(st.sampled_from([name for name in VARIANTS if name.startswith("DiT-")]), min_size=1, unique=True),
    train__steps=st.just(10**7),
    train__global_batch=st.integers(1, 4096),
    train__learning_rate=st.floats(1e-8, 10, allow_nan=False),
    train__seed=st.integers(0, 2**31),
    train__precision=st.sampled_from(["fp32", "tf32", "bf16"]),
    sampling__cfg_scale=st.floats(0, 20, allow_nan=False),
    sampling__sampler=st.sampled_from(["ddpm", "ddim"]),
    evaluation__at_steps=st.lists(steps, min_size=1, max_size=5, unique=True).map(sorted),
    dataset__mirror=st.booleans(),
    description=st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=30),
)


@given(studies)
def test_what_show_prints_reads_back_to_an_equal_study(study: dict[str, Any]) -> None:
    config = load_text(yaml.safe_dump(study, allow_unicode=True))
    again = load_text(config.to_yaml())
    assert again == config
    assert [again.evaluation_hash(run) for run in again.runs] == [config.evaluation_hash(s) for s in config.runs]


@given(st.floats(1e-12, 1e3, allow_nan=False))
def test_a_number_means_the_same_in_the_file_and_behind_set(rate: float) -> None:
    in_file = parse(train__learning_rate=rate)
    assert parse([f"train.learning_rate={rate!r}"]) == in_file
    assert parse([f"train.learning_rate={rate:.17e}"]).train.learning_rate == rate


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4", "+1e-4"])
def test_every_way_to_write_a_small_number_is_a_number(text: str) -> None:
    assert parse([f"train.learning_rate={text}"]).train.learning_rate == 1e-4


@pytest.mark.parametrize("word", ["on", "off", "auto", "'on'"])
def test_words_that_yaml_takes_for_booleans_are_words(word: str) -> None:
    assert parse([f"fit.compile={word}"]).fit.compile == word.strip("'")


@pytest.mark.parametrize("word", ["on", "no", "1:30", "2024-01-01", "2024-13-45", "0x", "~x", "1e3x", "١٠٠"])
def test_what_yaml_takes_for_another_type_is_a_text(word: str) -> None:
    config = parse([f"description={word}"])
    assert config.description == word
    assert yaml.safe_load(config.to_yaml())["description"] == word


@pytest.mark.parametrize("text", ["1e3", "0100", "on", "1:30", "null", "1_000", ""])
def test_a_text_that_looks_like_another_type_reads_back(text: str) -> None:
    config = parse([f"description='{text}'"])
    assert load_text(config.to_yaml()) == config


@pytest.mark.parametrize("number", ["1:30", "1,000", "1k", "100.5", "0o100", "١٠٠"])
def test_what_is_not_a_whole_number_is_refused(number: str) -> None:
    assert "must be a whole number, such as 100" in refusal(parse, [f"train.steps={number}"])


@pytest.mark.parametrize("number", ["8e1", "80.0", "8_0", "'80'", "+80", "0x50"])
def test_a_length_is_evaluated_alike_however_it_is_written(number: str) -> None:
    assert parse([f"train.steps={number}"]) == parse(["train.steps=80"])


@pytest.mark.parametrize(
    "key",
    [
        *("tracking.uri", "dataset.source.path", "dataset.codec.weights", "dataset.codec.decoder"),
        *("evaluation.extractor_weights", "evaluation.reference={kind: adm, path: ADDRESS}"),
        "cluster.env={PROXY: ADDRESS}",
    ],
)
@pytest.mark.parametrize(
    "address",
    [
        *("http://me:planted@host/a", "s3://planted@bucket/a", "postgresql://me:pl@nted@host/a"),
        *("http://host/a?b=c&Api_Key=planted", "postgresql://host/a?password=planted", "https://host/#token=planted"),
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(key: str, address: str) -> None:
    override = key.replace("ADDRESS", f"'{address}'") if "ADDRESS" in key else f"{key}={address}"
    message = refusal(parse, [override])
    assert key.partition("=")[0] in message
    assert not re.search("planted|nted", message)


@pytest.mark.parametrize(
    "override",
    [
        "tracking.uri {}",
        "tracking.uri=http://host/?pwd=planted {",
        "tracking.uri=http://me:pl/anted@host",
        "=s {}",
        "tracking.uri=[{}",
        "study={}",
        "train.steps={}",
        "description={{{}: 1, {}: 2}}",
    ],
)
def test_no_mistake_repeats_a_password(override: str) -> None:
    message = refusal(parse, [override.replace("{}", "http://me:planted@host/a")])
    assert "anted" not in message


@pytest.mark.parametrize("address", ["sqlite:////a@b/c.db", "/home/a@b", "s3://bucket/a@b", "http://host:80/a?b=c@d"])
def test_an_address_without_a_password_may_have_an_at_sign(address: str) -> None:
    source = parse([f"dataset.source.path={address}"]).dataset.source
    assert source.kind == "folder"
    assert source.path == address


def test_later_overrides_win_and_reach_new_sections() -> None:
    config = parse(["train.steps=200", "fit.micro_batch=16", "train.steps=300", "variants=[DiT-B/2]"])
    assert (config.train.steps, config.fit.micro_batch, config.variants) == (300, 16, ("DiT-B/2",))


def test_a_variant_is_found_by_name_and_by_slug() -> None:
    assert parse(variants=["dit-xl-2"]).variants == ("DiT-XL/2",)
    assert parse().spec("dit-s-8") == resolve("DiT-S/8")


def test_fit_of_one_variant_replaces_the_common_keys() -> None:
    config = parse(fit={"micro_batch": 32, "threads": 2}, fit_by_variant={"DiT-XL/2": {"micro_batch": 8}})
    small, large = config.specs
    assert (config.fit_for(small).micro_batch, config.fit_for(large).micro_batch) == (32, 8)
    assert config.fit_for(large).threads == 2


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"fit__micro_batch": 8}, True),
        ({"tracking__kind": "none"}, True),
        ({"plan__count": 64}, True),
        ({"dataset__source__path": "/elsewhere"}, True),
        ({"train__steps": 1000}, True),
        ({"train__seed": 1}, False),
        ({"train__precision": "bf16"}, False),
        ({"dataset__codec__scale_factor": 0.2}, False),
    ],
)
def test_only_science_enters_the_training_hash(change: dict[str, Any], same: bool) -> None:
    before, after = parse(), parse(**change)
    assert (before.training_hash(before.runs[0]) == after.training_hash(after.runs[0])) is same


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train__stepps": 3}, "train.stepps: unknown key (did you mean train.steps?)"),
        ({"trian__steps": 3}, "trian: unknown key (did you mean train?)"),
        ({"dataset__source__pth": "/x"}, "dataset.source.pth: unknown key (did you mean dataset.source.path?)"),
        ({"dataset__codec__channels": 3}, "dataset.codec.channels: is not a key of kind vae"),
        ({"tracking__uri": "/a/b"}, "tracking.uri='/a/b': MLflow no longer supports folders"),
        ({"tracking__uri": "http://host:99999"}, "is no address (Port out of range 0-65535); give http://host:port"),
        ({"tracking__uri": "http://[host"}, "is no address (Invalid IPv6 URL); give http://host:port"),
        ({"lr": 1}, "lr: unknown key (did you mean train.learning_rate?)"),
        ({"steps": 1}, "did you mean train.steps or sampling.steps"),
        ({"train__momentum": 3}, "train.momentum: unknown key; `dit keys train` lists the keys"),
        ({"train__warmup": 3}, "train.warmup: unknown key (did you mean train.warmup_steps?)"),
        ({"cluster__tolerations": [{"key": "a", "efect": "b"}]}, "did you mean cluster.tolerations[].effect?"),
        ({"dataset__vae": {}}, "dataset.vae: unknown key"),
        ({"train": None}, "train=null: must be a section of keys"),
        ({"variants": "mini-S/2"}, "variants='mini-S/2': must be a list, written [mini-S/2]"),
        ({"train__betas": [0.9]}, "train.betas: entry 2 is missing"),
        ({"train__learning_rate": "fast"}, "train.learning_rate='fast': must be a number"),
        ({"description": 3}, "description=3: must be a text; put it in quotes"),
        ({"dataset__mirror": "perhaps"}, "dataset.mirror='perhaps': must be true or false"),
        ({"evaluation__extractor_sha256": "ABC"}, "must be 64 hexadecimal digits"),
        ({"study": "a" * 41}, "must be 1 to 40 characters of a-z, 0-9 and '-'"),
        ({"study": "on"}, "choose another name"),
        ({"variants": ["XL/2"]}, "(did you mean DiT-XL/2 or mini-XL/2?)"),
        ({"variants": ["dit_xl_2"]}, "(did you mean DiT-XL/2?)"),
        ({"train__steps": 0}, "train.steps=0"),
        ({"train__steps": "many"}, "train.steps='many'"),
        ({"train__learning_rate": -1}, "train.learning_rate=-1"),
        ({"train__label_drop": 1.0}, "train.label_drop=1.0"),
        ({"train__precision": "fp16"}, "train.precision='fp16': must be 'fp32', 'tf32' or 'bf16'"),
        ({"train__steps": True}, "train.steps=true: must be a whole number"),
        ({"evaluation__at_steps": [True]}, "evaluation.at_steps.0=true"),
        ({"fit__prefetch": False}, "fit.prefetch=false"),
        ({"cluster__replicas": True}, "cluster.replicas=true"),
        ({"train__seed": 2**63}, f"train.seed={2**63}"),
        ({"sampling__seed": 10**22}, f"sampling.seed={10**22}"),
        ({"dataset__shuffle_seed": -1}, "dataset.shuffle_seed=-1"),
        ({"sampling__steps": 1001}, "sampling.steps=1001"),
        ({"evaluation__at_steps": []}, "evaluation.at_steps"),
        ({"evaluation__at_steps": [100, 50]}, "steps must ascend"),
        ({"evaluation__at_steps": [200]}, "train.steps=100 never reaches"),
        ({"study": "My Study"}, "study='My Study': must be 1 to 40"),
        ({"variants": ["DiT-M/2"]}, "'DiT-M/2' is not a known variant"),
        ({"variants": ["DiT-S/8", "dit-s-8"]}, "named twice"),
        ({"variants": []}, "variants"),
        ({"dataset__image_size": 250}, "image_size=250 is not divisible by 8"),
        ({"dataset__image_size": 232}, "29, which 8 does not divide"),
        ({"dataset__codec": {"kind": "vqgan"}}, "dataset.codec.kind='vqgan': must be 'pixels' or 'vae'"),
        ({"fit_by_variant": {"DiT-L/2": {}}}, "'DiT-L/2', which is not among variants"),
        ({"fit_by_variant": {"DiT-S/8": {"micro_bach": 3}}}, "did you mean fit_by_variant.DiT-S/8.micro_batch?"),
        ({"evaluation__extractor": "digits"}, "evaluation.extractor=digits needs"),
        ({"sampling__cfg_scale": math.inf}, "sampling.cfg_scale=inf: must be a finite number"),
        ({"train__learning_rate": math.inf}, "train.learning_rate=inf"),
        ({"train__weight_decay": math.inf}, "train.weight_decay=inf"),
        ({"dataset__codec__scale_factor": math.inf}, "scale_factor=inf"),
        ({"evaluation__resamples": 39}, "resamples=39 is too low for confidence=0.95; give at least 40"),
        ({"evaluation__resamples": 199, "evaluation__confidence": 0.99}, "give at least 200"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(change: dict[str, Any], named: str) -> None:
    message = refusal(parse, **change)
    assert message.startswith("a.yaml: ")
    assert named in message
    assert not re.search("Input should|String should|Tuple should|validation", message)


KEYS = st.sampled_from(
    [
        *("study", "dataset", "dataset.source", "dataset.codec.kind", "variants", "variants.0", "train.steps"),
        *("train.betas", "evaluation.at_steps", "evaluation.reference", "fit", "fit_by_variant.DiT-S/8"),
        *("fit_by_variant", "tracking.uri"),
    ]
)
TYPED = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), max_size=12)


@given(st.lists(st.one_of(st.builds("{}={}".format, KEYS, TYPED), TYPED), max_size=3))
def test_any_override_gives_a_study_or_one_line(overrides: list[str]) -> None:
    message = ""
    try:
        parse(overrides)
    except ConfigError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("study: [", "not YAML"),
        ("just words", "must be a mapping"),
        ("study: a\nstudy: b\n", "'study' is given twice"),
        ("study: {1: a, 0x1: b}\n", "line 1, column 15: key '0x1' is given twice"),
        ("study: a\n\tvariants: []\n", "line 2, column 1: a tab; indent with spaces"),
        ("study: " + "[" * 5000, "too many sections within sections"),
        ("train: {steps: 0100}\n", "0100 begins with 0; write 100, or '0100'"),
        ("!!python/object:os.system {}", "not YAML"),
        ('a: 1\ndescription: "a \\ud83d"\n', r"line 2, column 14: '\ud83d' is no character of a text"),
        ('a: "a\\0"\n', r"'\x00' is no character of a text"),
        ("a: 1\nb: " + "1" * 5000, "line 2, column 4: a number of 5,000 characters; shorten it"),
    ],
)
def test_a_text_that_is_not_a_study_is_one_line(text: str, named: str) -> None:
    assert named in refusal(load_text, text, where="a.yaml")


def test_a_merge_brings_the_keys_that_are_not_given() -> None:
    names = ("mini-S/2", "mini-B/2")
    text = yaml.safe_dump(tree(variants=list(names), dataset__image_size=64))
    fits = "fit_by_variant:\n  mini-S/2: &small {micro_batch: 8, sample_batch: 4}\n"
    config = load_text(f"{text}{fits}  mini-B/2: {{<<: *small, sample_batch: 2}}\n")
    assert config.fit_by_variant["mini-B/2"] == {"micro_batch": 8, "sample_batch": 2}
    with pytest.raises(ConfigError, match="'sample_batch' is given twice"):
        load_text(f"{text}{fits}  mini-B/2: {{<<: *small, sample_batch: 2, sample_batch: 3}}\n")


@pytest.mark.parametrize(
    "override", ["train.steps", "=3", "study.name=x", "train.steps=[", "train.steps=: :", "train.=3", "train.seed=007"]
)
def test_a_mistake_in_an_override_names_the_override(override: str) -> None:
    assert f"--set {override}" in refusal(parse, [override])


def test_a_path_that_is_not_a_text_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\x80\x81\xff")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
        assert str(path) in refusal(load, path)


@pytest.mark.parametrize(
    ("overrides", "evaluated"),
    [
        (["train.steps=80"], (50, 80)),
        (["train.steps=50"], (50,)),
        (["train.steps=10"], (10,)),
        (["train.steps=200"], (50, 100, 200)),
        (["train.steps=200", "evaluation.at_steps=[150]"], (150,)),
        (["train.seed=1"], (50, 100)),
    ],
)
def test_another_length_is_evaluated_at_its_last_step(overrides: list[str], evaluated: tuple[int, ...]) -> None:
    assert parse(overrides).evaluation.at_steps == evaluated
