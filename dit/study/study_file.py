"""Reads a study file and its overrides into a StudyConfig; every mistake is one line. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dit.errors import ConfigError, MissingError
from dit.study.config import StudyConfig
from dit.study.fields import Positive, hide_credentials
from dit.study.mistakes import first_line
from dit.study.yaml_values import parse

_STEPS = TypeAdapter(list[Positive])


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> StudyConfig:
    """The study in this file, after `key.path=value` overrides.

    Raises MissingError when the file does not exist, ConfigError for any other mistake.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise MissingError(f"study file {path}: {error.strerror or error}; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise _mistake(f"study file {path}: is not text; give the path of a YAML file") from None
    return load_text(text, overrides, where=str(path))


def load_text(text: str, overrides: list[str] | tuple[str, ...] = (), where: str = "study") -> StudyConfig:
    """Like `load`, from YAML text; `where` names it in errors."""
    try:
        tree = parse(text)
    except ValueError as error:
        raise _mistake(f"{where}: not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise _mistake(f"{where}: must be a mapping of sections, such as study, dataset, train")
    for override in overrides:
        _apply(tree, override)
    _follow_length(tree, overrides)
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise _mistake(f"{where}: {first_line(error, StudyConfig)}") from None


def _mistake(message: str) -> ConfigError:
    """An error with this message, which quotes what was given."""
    return ConfigError(hide_credentials(message))


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise _mistake(f"--set {override}: must read key.path=value, such as --set train.steps=100")
    *parents, last = key.strip().split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise _mistake(f"--set {override}: {parent} is a value, not a section")
        node = child
    try:
        node[last] = parse(value)
    except ValueError as error:
        raise _mistake(f"--set {override}: {error}") from None


def _follow_length(tree: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> None:
    """With another `train.steps`, evaluate the last step and those of `evaluation.at_steps` before it."""
    given = [override.partition("=")[0].strip() for override in overrides]
    train, evaluation = tree.get("train"), tree.get("evaluation")
    if "train.steps" not in given or not isinstance(train, dict) or not isinstance(evaluation, dict):
        return
    if any(key in ("evaluation", "evaluation.at_steps") for key in given):
        return
    try:
        length, *steps = _STEPS.validate_python([train.get("steps"), *evaluation.get("at_steps", [])])
    except (ValidationError, TypeError):
        return  # the study's own check names the mistake
    evaluation["at_steps"] = [*(step for step in steps if step < length), length]
