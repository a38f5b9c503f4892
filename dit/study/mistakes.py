"""Words for a study that is not valid: one line with the key, what is wrong and how to write it. Torch-free."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

from dit.errors import ConfigError
from dit.study.fields import SecretError, Section
from dit.study.keys import paths

# After these keys pydantic puts the kind that was chosen into a location.
_CHOICES = ("source", "codec", "reference")
_CLOSE = 0.7
_VERY_CLOSE = 0.85


def first_line(error: ValidationError, study: type[Section], under: str = "") -> str:
    """The most useful problem as `key=value: what (what to do)`, and the number of further ones.

    `under` is put before the keys, where `study` is the type of a section.
    """
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = _location(problem)
    if problem["type"] == "extra_forbidden":
        text = f"{under}{'.'.join(location)}: {_unknown(problem, location, paths(study), under)}"
    else:
        text = under + _problem(location, problem)
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


def similar(path: str, known: Iterable[str]) -> list[str]:
    """Keys that `path` may stand for: a similar one of its own section, else those of its name elsewhere.

    The initials of a key count as its name, such as `lr` for `learning_rate`.
    """
    section, _, name = path.rpartition(".")
    paths = list(dict.fromkeys(known))
    last = {key: key.rpartition(".")[2] for key in paths}
    beside = {last[key]: key for key in paths if key.rpartition(".")[0] == section}
    close = difflib.get_close_matches(name, sorted(beside), n=1, cutoff=_CLOSE) or _beginning(name, beside)
    if close:
        return [beside[close[0]]]
    same = [key for key in paths if name in (last[key], _initials(last[key]))]
    near = difflib.get_close_matches(name, sorted(set(last.values())), n=1, cutoff=_VERY_CLOSE)
    return same or [key for key in paths if last[key] in near]


def _beginning(name: str, known: Iterable[str]) -> list[str]:
    return [key for key in known if len(name) > 2 and key.startswith(f"{name}_")]


def _initials(name: str) -> str:
    words = name.split("_")
    return "".join(word[0] for word in words if word) if len(words) > 1 else name


def _unknown(problem: Any, location: list[str], known: list[str], under: str) -> str:
    if ".".join(location) in known:
        return f"is not a key of kind {problem['loc'][-2]}; remove it, or choose another kind"
    return f"unknown key{_hint(location, known, under)}"


def _hint(location: list[str], known: list[str], under: str) -> str:
    # An entry of a list, as in `paths`.
    section = re.sub(r"\.\d+(?=\.|$)", "[]", ".".join(location[:-1]))
    found = similar(f"{section}.{location[-1]}" if section else location[-1], known)
    if found:
        return f" (did you mean {' or '.join(under + path for path in found[:3])}?)"
    return f"; `dit keys{' ' + section if section else ''}` lists the keys"


def _location(problem: Any) -> list[str]:
    parts = [str(part) for part in problem["loc"]]
    kinds = {number for number in range(1, len(parts) - 1) if parts[number - 1] in _CHOICES}
    return [part for number, part in enumerate(parts) if number not in kinds]


def _problem(location: list[str], problem: Any) -> str:
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    key = ".".join(location)
    if kind == "missing":
        return _missing(location)
    if kind == "union_tag_not_found":
        return f"{key}.kind: is required"
    if kind == "union_tag_invalid":
        return f"{key}.kind={context['tag']!r}: must be {_either(context['expected_tags'])}"
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error" and isinstance(context.get("error"), SecretError):
        return f"{key}: {message}"
    text = _WORDS[kind](given, context) if kind in _WORDS else _lower(message)
    return f"{key}{_shown(given)}: {text}" if key else text


def _lower(message: str) -> str:
    """The message without its first capital, unless that belongs to a name such as MLflow."""
    return message[:1].lower() + message[1:] if message[1:2].islower() else message


def _missing(location: list[str]) -> str:
    *parents, last = location
    if last.isdecimal():
        return f"{'.'.join(parents)}: entry {int(last) + 1} is missing"
    return f"{'.'.join(location)}: is required"


def _shown(given: Any) -> str:
    if given is None or isinstance(given, bool):
        return f"={'null' if given is None else str(given).lower()}"
    return f"={repr(given)[:80]}" if isinstance(given, str | int | float) else ""


def _either(names: str) -> str:
    """`'a', 'b' or 'c'` from `'a', 'b', 'c'`."""
    return re.sub(r", (?!.*, )", " or ", names)


def _plain(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def _list(given: Any, _: Any) -> str:
    return f"must be a list, written [{given}]" if isinstance(given, str | int | float) else "must be a list"


def _text(given: Any, _: Any) -> str:
    is_value = given is not None and isinstance(given, bool | int | float)
    return "must be a text; put it in quotes" if is_value else "must be a text"


def _entries(count: int) -> str:
    return f"{count} entry" if count == 1 else f"{count} entries"


_WORDS: dict[str, Callable[[Any, Any], str]] = {
    "greater_than": lambda _, ctx: f"must be above {_plain(ctx['gt'])}",
    "greater_than_equal": lambda _, ctx: f"must be {_plain(ctx['ge'])} or more",
    "less_than": lambda _, ctx: f"must be below {_plain(ctx['lt'])}",
    "less_than_equal": lambda _, ctx: f"must be {_plain(ctx['le'])} or less",
    "finite_number": lambda *_: "must be a finite number",
    "literal_error": lambda _, ctx: f"must be {ctx['expected']}",
    "string_type": _text,
    "tuple_type": _list,
    "list_type": _list,
    "too_short": lambda _, ctx: f"must have at least {_entries(ctx['min_length'])}",
    "too_long": lambda _, ctx: f"must have at most {_entries(ctx['max_length'])}",
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_parsing_size", "int_from_float"),
        lambda *_: "must be a whole number, such as 100",
    ),
    **dict.fromkeys(("float_type", "float_parsing"), lambda *_: "must be a number, such as 0.1"),
    **dict.fromkeys(("bool_type", "bool_parsing"), lambda *_: "must be true or false"),
    **dict.fromkeys(
        ("dict_type", "model_type", "model_attributes_type", "mapping_type"), lambda *_: "must be a section of keys"
    ),
    "invalid_key": lambda *_: "a key must be a text; put it in quotes",
}
"""What pydantic calls a problem -> words, given the value and the problem's context."""


def as_value_error(call: Any, argument: Any) -> Any:
    """Turn a ConfigError into a ValueError, which pydantic reports with the key it came from."""
    try:
        return call(argument)
    except ConfigError as error:
        raise ValueError(str(error).removeprefix("variants: ")) from None
