"""An output of a stage: one record in the store, written last, and the files that the record lists. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dit.study.config import StudyConfig
from dit.study.records import Record

RecordT = TypeVar("RecordT", bound=Record)
FileSize = tuple[str, int | None]
"""A key and the file's size in bytes; None if the record does not have the size."""


@dataclass(frozen=True)
class Output(Generic[RecordT]):
    """One record that a stage writes, and the conditions that make it complete."""

    key: str
    type: type[RecordT]
    hash: str
    """The configuration hash that this study expects."""
    sections: str
    """Sections of the study file that the hash covers, for messages."""
    lacking: str
    """Message if the output is not complete, such as `mini-S/2 at step 1500 is not sampled`."""
    command: str
    """The command that makes it."""
    files: Callable[[RecordT], Iterable[FileSize]] = lambda _: ()
    """Files that the record lists."""
    differs: Callable[[RecordT], str | None] = lambda _: None
    """Message if the record contradicts the study although its hash is right, with the remedy; else None."""
    falls_short: Callable[[RecordT], str | None] = lambda _: None
    """Message if the record is valid but not final, such as a shorter training; else None."""
    detail: Callable[[], str] = str
    """Addition to `lacking` if there is no record."""
    needed_by: Callable[[], Iterable[Output[Any]]] | None = None
    """Outputs made from this one. Once all are complete, its files may be removed; with None, they never may."""
    record_stays: bool = True
    """Whether the record must stay when the files may be removed."""
    made_from: Callable[[], Iterable[Output[Any]]] = tuple
    """Outputs that this one is made from, in the order of the study."""
    hash_of: Callable[[StudyConfig], str] | None = None
    """The hash of any study, to find the one that a record with another hash was made with."""
    replaceable: bool = False
    """Whether a record with another hash is replaced instead of refused."""
