"""Base class and field types of the sections of a study file. Torch-free."""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number, not true or false")
    return value


def on_or_off(value: object) -> object:
    """Return the word for a value that YAML read as a boolean."""
    # YAML reads the bare words on and off as true and false.
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Whole = Annotated[int, BeforeValidator(_no_boolean)]
Slug = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
Positive = Annotated[Whole, Field(gt=0)]
Natural = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
"""A seed that both numpy and torch accept."""
Fraction = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["fp32", "tf32", "bf16"]
"""Precision of a model's matrix products."""
FeaturePrecision = Literal["fp32", "bf16"]
"""Precision of a feature extractor's matrix products."""
Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(on_or_off)]


class Section(BaseModel):
    """A frozen section of the study file. An unknown key or a number that is not finite is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset()
    """Keys that were added after results existed. With its default, such a key is in no hash, so results stay valid."""

    def hashed(self, exclude: Set[str] = frozenset()) -> dict[str, Any]:
        """The section as JSON values for a hash, without `exclude` and without unset later keys."""
        fields = type(self).model_fields
        unset = {
            key for key in self.LATER_KEYS if getattr(self, key) == fields[key].get_default(call_default_factory=True)
        }
        tree = self.model_dump(mode="json", exclude={*exclude, *unset})
        sections = {key: value for key, value in self if key in tree and isinstance(value, Section)}
        return tree | {key: section.hashed() for key, section in sections.items()}
