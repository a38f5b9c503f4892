"""Reads a study file and its overrides into a StudyConfig; every mistake is one line. Torch-free."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dit.errors import ConfigError, MissingError, one_line
from dit.study.addresses import refuse_user_information
from dit.study.config import StudyConfig
from dit.study.fields import Section


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> StudyConfig:
    """The study in this file, after `key.path=value` overrides.

    Raises MissingError when the file does not exist, ConfigError for any other mistake.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise MissingError(f"study file {path}: {error.strerror or error}; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"study file {path}: is not text; give the path of a YAML file") from None
    return load_text(text, overrides, where=str(path))


def load_text(text: str, overrides: list[str] | tuple[str, ...] = (), where: str = "study") -> StudyConfig:
    """Like `load`, from YAML text; `where` names it in errors."""
    try:
        tree = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: the 45th of a month looks like a date to YAML
        raise ConfigError(f"{where}: not YAML: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: must be a mapping of sections, such as study, dataset, train")
    for override in overrides:
        _apply(tree, override)
    _follow_length(tree, overrides)
    refuse_user_information(tree)
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_line(error)}") from None


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number (in YAML 1.1 it is a string) and refuses a key given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping's node, after its keys were compared. Later they would include keys of a merge (<<)."""
        node = super().compose_mapping_node(anchor)
        keys: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            value = self.construct_object(key)
            if value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            keys.add(value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: must read key.path=value, such as --set train.steps=100")
    *parents, last = key.strip().split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
        node = child
    try:
        node[last] = yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {override}: {value!r} is not a YAML value") from None


def _follow_length(tree: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> None:
    """With another `train.steps`, evaluate the last step and those of `evaluation.at_steps` before it."""
    given = [override.partition("=")[0].strip() for override in overrides]
    train, evaluation = tree.get("train"), tree.get("evaluation")
    if "train.steps" not in given or not isinstance(train, dict) or not isinstance(evaluation, dict):
        return
    length, steps = train.get("steps"), evaluation.get("at_steps")
    chosen = any(key in ("evaluation", "evaluation.at_steps") for key in given)
    if not chosen and isinstance(length, int) and isinstance(steps, list) and all(isinstance(s, int) for s in steps):
        evaluation["at_steps"] = [*(step for step in steps if step < length), length]


def _first_line(error: ValidationError) -> str:
    """The most useful problem as `key: what (what to do)`, and the number of further ones."""
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in problem["loc"] if part not in ("digits", "folder", "tar", "pixels", "vae", "adm")]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        hint = _closest(location)
        text = f"{key}: unknown key{f' (did you mean {hint}?)' if hint else ''}"
    elif problem["type"] == "missing":
        text = f"{key}: is required"
    else:
        message = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        shown = f"={given!r}" if isinstance(given, str | int | float | bool) else ""
        text = f"{key}{shown}: {message}" if key else message
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


def _closest(location: list[str]) -> str | None:
    names = {field for section in Section.__subclasses__() for field in section.model_fields}
    match = difflib.get_close_matches(location[-1], sorted(names), n=1, cutoff=0.7)
    return ".".join([*location[:-1], match[0]]) if match else None
