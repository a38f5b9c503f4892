"""What a source holds beside the images of the dataset: counted, and named in the records and in a line."""

from __future__ import annotations

from dit.errors import one_line
from dit.study.records import LeftOut

HIDDEN = "hidden"
NOT_AN_IMAGE = "without the extension of an image"
NO_CLASS = "outside the class folders"
SAME_FOLDER = "links to folders that contain them or were read before"
NOT_A_TAR = "beside the tar files"

# Names in the records, for each reason; the rest is only counted.
_NAMES = 1000
# Names in a message, for each reason.
_SHOWN = 3


class LeftOutList:
    """Collects files and folders that are not part of the dataset, by reason."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, reason: str, name: str) -> None:
        """Note a file or a folder; the name of a folder ends in a slash."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < _NAMES:
            names.append(name.encode("utf-8", "replace").decode("utf-8"))

    def records(self) -> tuple[LeftOut, ...]:
        """Return one record for each reason."""
        return tuple(
            LeftOut(reason=reason, count=count, names=tuple(self._names[reason]))
            for reason, count in self._counts.items()
        )


def describe(records: tuple[LeftOut, ...]) -> str:
    """Return counts, reasons and first names in one line."""
    parts = []
    for record in records:
        names = ", ".join(map(one_line, record.names[:_SHOWN]))
        parts.append(f"{record.count:,} {record.reason} ({names}{', ...' if record.count > _SHOWN else ''})")
    return "; ".join(parts)
