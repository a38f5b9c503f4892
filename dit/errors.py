"""The kinds of failure that a user can meet. Each message is one line: what, where, what to do.

Exit codes: 1, the work failed and may succeed when it is run again; 2, the input cannot work; 3, a retry would fail the
same way; 4, another process of the same work failed first; 128 + n, signal n stopped the work. The launcher of a job
decides by them whether to retry.
"""

from __future__ import annotations

import re

# Control characters but tab and line feed, and those that change the direction of text.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class DitError(Exception):
    """Work failed after it had begun; what was complete before stays complete."""

    exit_code = 1


class InputError(DitError):
    """The user's input cannot work; raised before any work starts."""

    exit_code = 2


class ConfigError(InputError):
    """A study file or an override has an unknown key or an impossible value."""


class MissingError(InputError):
    """A dataset, checkpoint, weights file or bucket that the work needs does not exist."""


class MismatchError(InputError):
    """A record exists, but belongs to another schema version, variant, study or configuration."""


class StoreError(DitError):
    """The store could not be reached, read or written."""

    transient = False
    """Whether it can heal while the same work waits: a disk gets space, a server returns, keys are replaced."""


class TransientStoreError(StoreError):
    """The store is full, busy or away. It is worth waiting for, with growing pauses between the tries."""

    transient = True


class CredentialsError(TransientStoreError):
    """The store refused the credentials: expired, revoked or unknown, until somebody replaces them."""


class FinalError(DitError):
    """A retry would fail the same way, until somebody does what the message asks for."""

    exit_code = 3


class DataError(FinalError):
    """A shard, an image or a sample set is damaged or incomplete."""


class DivergedError(FinalError):
    """Training produced a loss, a gradient or a weight that is not finite."""


class UnhealthyError(FinalError):
    """A health check found a cause for which the results would be worthless."""


class LeaseError(FinalError):
    """Another process does the same work in the same store."""


class RanksDifferError(FinalError):
    """The processes of one work have different studies, datasets, code versions, settings or weights."""


class PeerError(DitError):
    """Another process of the same work was lost or failed first; its own error is the reason."""

    exit_code = 4


class StoppedError(DitError):
    """A signal stopped the work; the same command resumes it."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number  # as a shell reports a process that a signal ended


FINAL_EXIT_CODES = frozenset({InputError.exit_code, FinalError.exit_code})
"""Exit codes of work that is not retried."""


def printable(text: str) -> str:
    """`text` for a terminal: control characters, which a file's name may have, are written as escapes such as `\\x1b`.

    Tabs and line feeds stay.
    """
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: object) -> str:
    """`str(text)`, of an exception for example, as one printable line: runs of white space become one space."""
    return printable(" ".join(str(text).split()))


def root_cause(error: BaseException) -> BaseException:
    """The innermost exception behind this one: its cause or, unless it was raised `from None`, its context."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    return error
