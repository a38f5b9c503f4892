"""Base class and field types of the sections of a study file. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
_SWITCHES = {"true": "on", "yes": "on", "on": "on", "false": "off", "no": "off", "off": "off"}
# User information, and the values that a query or a fragment has for words such as `password` and `X-Amz-Signature`.
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY_SECRET = re.compile(
    r"(?P<key>://\S*?[?&;#][\w.-]*(user|pass|pwd|secret|token|key|signature|credential)[\w.-]*=)(?P<value>[^&;#\s]+)",
    re.I,
)


@dataclass(frozen=True)
class TypeName:
    """In the annotation of a field type: what it is called in the reference of all keys."""

    name: str


class SecretError(ValueError):
    """A value that may hold a password; messages must not repeat it."""


def without_credentials(address: str) -> str:
    """The address, or text with addresses, itself. Text without a scheme is a path, in which @ may stand.

    Raises SecretError, without the address, for user information as in http://user:password@host, and for a query as in
    http://host?password=secret.
    """
    if _USER.search(address) or _QUERY_SECRET.search(address):
        raise SecretError(
            "has an address with a user or a password, which would get into logs and reports; remove it, and set"
            " environment variables instead, such as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return address


def hide_credentials(text: str) -> str:
    """The text with `...` in place of user information in addresses, and of secrets in their queries."""
    text = _USER.sub("...@", text)
    while (hidden := _QUERY_SECRET.sub(r"\g<key>", text)) != text:
        text = hidden
    return text


def matching(pattern: str, words: str) -> AfterValidator:
    """A validator of text that the whole pattern matches; `words` says what it must be."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {words}")
        return text

    return AfterValidator(check)


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number, such as 100")
    return value


def _number_or_list(seeds: object) -> object:
    """A number of seeds, or a list of different ones; raises ValueError for anything else."""
    entries: list[Any] = list(seeds) if isinstance(seeds, list | tuple) else [seeds]
    if any(type(entry) is not int for entry in entries):
        raise ValueError("must be a number of seeds, such as 3, or a list, such as [0, 1, 2]")
    if isinstance(seeds, int):
        if seeds < 1:
            raise ValueError("must be 1 or more")
        return seeds
    if not entries or len(set(entries)) < len(entries) or min(entries) < 0 or max(entries) >= 2**63:
        raise ValueError(f"{entries} must have one or more different numbers from 0, below 2^63")
    return tuple(entries)


def on_or_off(value: object) -> object:
    """`on` or `off` for the words and values that YAML has for them; any other value as it is."""
    return _SWITCHES.get(str(value).casefold(), value) if isinstance(value, bool | str) else value


def _no_yaml_word(name: str) -> str:
    if name in _YAML_WORDS:
        raise ValueError("is true, false or null to many YAML readers; choose another name")
    return name


Whole = Annotated[int, BeforeValidator(_no_boolean)]
Slug = Annotated[
    str,
    matching(
        r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?",
        "1 to 40 characters of a-z, 0-9 and '-', beginning with a letter and not ending with '-'",
    ),
    AfterValidator(_no_yaml_word),
    TypeName("name"),
]
"""A name in addresses and Kubernetes objects: a DNS-1035 label."""
Address = Annotated[str, AfterValidator(without_credentials), TypeName("path or address")]
"""A path, or an address without user information."""
Sha256 = Annotated[
    str, matching(r"[0-9a-f]{64}", "64 hexadecimal digits, a-f in lower case"), TypeName("64 hexadecimal digits")
]
Positive = Annotated[Whole, Field(gt=0)]
Natural = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
"""A seed that both numpy and torch accept."""
Seeds = Annotated[
    int | tuple[int, ...], BeforeValidator(_number_or_list), TypeName("number, or list of whole numbers from 0")
]
"""How many seeds, or which."""
Fraction = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["fp32", "tf32", "bf16"]
"""Precision of a model's matrix products."""
FeaturePrecision = Literal["fp32", "bf16"]
"""Precision of a feature extractor's matrix products."""
Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(on_or_off)]
"""`true` and `yes` count as `on`, `false` and `no` as `off`."""


class Section(BaseModel):
    """A frozen section of the study file. An unknown key or a number that is not finite is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset()
    """Keys that were added after results existed. With its default, such a key is in no hash, so results stay valid."""

    def hashed(self, exclude: Set[str] = frozenset()) -> dict[str, Any]:
        """The section as JSON values for a hash, without `exclude` and without unset later keys."""
        fields = type(self).model_fields
        unset = {key for key in self.LATER_KEYS if getattr(self, key) == fields[key].get_default()}
        tree = self.model_dump(mode="json", exclude={*exclude, *unset})
        sections = {key: value for key, value in self if key in tree and isinstance(value, Section)}
        return tree | {key: section.hashed() for key, section in sections.items()}
