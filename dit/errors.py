"""The few kinds of failure a user can meet; each message is one line: what, where, what to do."""


class DitError(Exception):
    """Work failed after it had begun; whatever was complete before stays complete."""

    exit_code = 1


class InputError(DitError):
    """What the user gave cannot work; raised before any work starts."""

    exit_code = 2


class ConfigError(InputError):
    """A study file or an override holds an unknown key or an impossible value."""


class MissingError(InputError):
    """A dataset, checkpoint, weights file or bucket that the work needs is not there."""


class MismatchError(InputError):
    """A record exists, but was made by another schema, variant, study or configuration."""


class StoreError(DitError):
    """The store could not be reached, read or written."""


class DataError(DitError):
    """A shard, an image or a sample set is damaged or incomplete."""


class DivergedError(DitError):
    """Training produced a loss, a gradient or a weight that is not finite."""


class StoppedError(DitError):
    """A signal stopped the work at a point from which the same command goes on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number  # what a shell reports for a process that the signal ended
