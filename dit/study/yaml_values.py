"""YAML as people write it: the numbers and words of YAML 1.2, each key once. Torch-free.

YAML 1.1, which PyYAML reads, takes `1:30` for 90, `on` for true, 2024-01-01 for a date and `0100` for 64. Here the
first three are words, and the last is refused. What is written here reads the same in both versions.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from dit.errors import one_line

_TAG = "tag:yaml.org,2002:"
_WHOLE = re.compile(r"^[-+]?([0-9][0-9_]*|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)
# NUL, which no path and no variable can hold, and halves of surrogate pairs, which no file can hold.
_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
_MAX_DIGITS = 400
_NUMBER_STARTS = list("-+.0123456789")


def parse(text: str) -> Any:
    """The value of a YAML text.

    Raises ValueError, with line and column, when the text is not YAML or has a key twice in one mapping.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark and "\n" in text else ""
        raise ValueError(f"{where}{_problem(error)}") from None
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from None
    except RecursionError:
        raise ValueError("too many sections within sections") from None


def as_yaml(tree: dict[str, Any]) -> str:
    """YAML with the keys in the tree's order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = one_line(error.problem or error)
    if "\\t" in problem:
        return "a tab; indent with spaces"
    return f"{one_line(error.context)}, {problem}" if error.context else problem


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  declared so by the base class

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping's node, after its keys were compared. Later they would include keys of a merge (<<)."""
        node = super().compose_mapping_node(anchor)
        keys: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_TAG}merge":
                continue
            value = self.construct_object(key)
            if value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            keys.add(value)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """The text of a node; ConstructorError for an escape such as `\\0` that stands for no character of a text."""
        text = super().construct_scalar(node)
        if isinstance(text, str) and (found := _NO_CHARACTER.search(text)):
            problem = f"{found[0]!a} is no character of a text; write the character itself, or remove it"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return text

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """The number of a node that `_WHOLE` or `_FLOAT` matches; ConstructorError if it begins with a needless 0."""
        text = node.value.replace("_", "")
        if len(text) > _MAX_DIGITS:
            problem = f"a number of {len(text):,} characters; shorten it"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        if re.match(r"[-+]?0[0-9]", text):
            problem = f"{node.value} begins with 0; write {text.lstrip('+-0') or 0}, or '{node.value}' if it is a text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        if node.tag == f"{_TAG}float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        return int(text, 16 if "x" in text else 10)


class _Dumper(yaml.SafeDumper):
    """Quotes every word that YAML 1.1 or `_Loader` would not read as a word."""


for _name, _pattern, _starts in (
    ("null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", _WHOLE, list("-+0123456789")),
    ("float", _FLOAT, _NUMBER_STARTS),
    ("merge", re.compile(r"^<<$"), ["<"]),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", _pattern, _starts)
for _name in ("int", "float"):
    _Loader.add_constructor(f"{_TAG}{_name}", _Loader.construct_number)
_Dumper.add_implicit_resolver(f"{_TAG}float", _FLOAT, _NUMBER_STARTS)
