"""Every key of a study file, with type, default and meaning, read from the types of its sections. Torch-free.

all_keys(StudyConfig)[0]  # Key(path="study", type="name of a-z, ...", default=None, meaning="...")
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from dit.study.fields import Section, TypeName

REQUIRED = "required"
UNSET = "unset"
_LIST = "[]"


@dataclass(frozen=True)
class Key:
    """One key of a study file."""

    path: str
    """Such as `train.steps`; `cluster.tolerations[].key` is a key of a list's entries."""
    type: str
    default: str
    """As in a study file, `required` or `unset`."""
    meaning: str
    kind: str = ""
    """The section's `kind` that has this key; empty if every kind has it."""


@dataclass(frozen=True)
class KeySection:
    """A section of a study file, and its own keys."""

    path: str
    """Such as `cluster.pod`; empty for the file itself."""
    meaning: str
    keys: tuple[Key, ...]


def all_keys(study: type[Section]) -> list[Key]:
    """Every key, in the order of the types."""
    return [key for section in sections(study) for key in section.keys]


def paths(study: type[Section]) -> list[str]:
    """The paths of all sections and keys."""
    return [path for section in sections(study) for path in (section.path, *(key.path for key in section.keys)) if path]


def sections(study: type[Section]) -> list[KeySection]:
    """The file and its sections, in the order of the types. Kinds of a section are one section."""
    return list(_sections("", _meaning_of(study), (study,)))


def _sections(
    path: str, meaning: str, models: Sequence[type[Section]], default_kind: str = REQUIRED
) -> Iterator[KeySection]:
    """A section, which may have several kinds, and the sections below it."""
    own = [_choice(path, models, default_kind)] if len(models) > 1 else []
    below: list[tuple[str, str, Sequence[type[Section]], str]] = []
    for model in models:
        for name, field in model.model_fields.items():
            where = f"{path}.{name}" if path else name
            kinds, is_list = _models(field.annotation)
            if kinds:
                described = _description(model, name) or _meaning_of(*kinds)
                default = REQUIRED if field.is_required() else getattr(field.get_default(), "kind", REQUIRED)
                below.append((where + _LIST if is_list else where, described, kinds, default))
            if is_list or not (kinds or (name == "kind" and own)):
                kind = _kind(model) if len(models) > 1 else ""
                own.append(Key(where, *_type_and_default(field), _description(model, name), kind))
    yield KeySection(path, meaning, tuple(own))
    for section in below:
        yield from _sections(*section)


def _choice(path: str, models: Sequence[type[Section]], default: str) -> Key:
    """The key that chooses the kind of a section."""
    meanings = [f"`{_kind(model)}`: {_meaning_of(model)}" for model in models]
    return Key(f"{path}.kind", _either([_kind(model) for model in models]), default, " ".join(meanings))


def _kind(model: type[Section]) -> str:
    return str(get_args(model.model_fields["kind"].annotation)[0])


def _models(annotation: Any) -> tuple[tuple[type[Section], ...], bool]:
    """The sections that an annotation allows, and whether in a list; none for a value."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return (annotation,), False
    if origin in (Union, types.UnionType):
        found = tuple(model for argument in arguments for model in _models(argument)[0])
        return found, False
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _models(arguments[0])[0], True
    return (), False


def _description(model: type[Section], name: str) -> str:
    """A field's docstring, or that of the class that it is inherited from."""
    for owner in model.__mro__:
        if issubclass(owner, Section) and name in owner.model_fields and owner.model_fields[name].description:
            return _line(owner.model_fields[name].description)
    return ""


def _meaning_of(*models: type[Section]) -> str:
    return _line(models[0].__doc__) if len(models) == 1 else ""


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _type_and_default(field: FieldInfo) -> tuple[str, str]:
    words = _type(field.annotation, field.metadata)
    if field.is_required():
        return words, REQUIRED
    return words, as_written(field.get_default(call_default_factory=True))


def as_written(value: Any) -> str:
    """A value as in a study file; `unset` for None."""
    if value is None:
        return UNSET
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {as_written(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(as_written, value))}]"
    return f"{value:,}".replace(",", "_") if isinstance(value, int) else str(value) or '""'


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Words for a type, such as `whole number above 0`."""
    metadata = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else (item,))]
    names = [item.name for item in metadata if isinstance(item, TypeName)]
    if names:
        return names[-1]
    if arguments := get_args(annotation):
        return _generic(get_origin(annotation), arguments, metadata)
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return "section"
    plain = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "value"}[annotation]
    return plain + _bounds(metadata)


def _generic(origin: Any, arguments: Sequence[Any], metadata: Sequence[Any]) -> str:
    """Words for a type with parameters."""
    if origin is Annotated:
        return _type(arguments[0], (*arguments[1:], *metadata))
    if origin is Literal:
        return _either([str(argument) for argument in arguments])
    if origin is tuple:
        return _list(arguments, metadata)
    if origin is dict:
        return f"mapping: {_type(arguments[0])} -> {_type(arguments[1])}"
    # X | None
    return _type(next(argument for argument in arguments if argument is not type(None)), metadata)


def _list(entries: Sequence[Any], metadata: Sequence[Any]) -> str:
    fewest = any(getattr(item, "min_length", 0) for item in metadata)
    count = "list" if entries[-1] is Ellipsis else f"list of {len(entries)}"
    return f"{count}{', at least one' if fewest else ''}: {_type(entries[0])}"


def _bounds(metadata: Sequence[Any]) -> str:
    words = []
    for item in metadata:
        for kind, name, word in ((Gt, "gt", "above"), (Ge, "ge", "from"), (Lt, "lt", "below"), (Le, "le", "at most")):
            if isinstance(item, kind) and (name, getattr(item, name)) != ("lt", 2**63):
                words.append(f"{word} {getattr(item, name):g}")
    return f" {', '.join(words)}" if words else ""


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
