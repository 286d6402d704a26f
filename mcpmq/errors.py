"""Errors that a user can correct.

McpmqError
├── CheckpointError    the checkpoint is missing, unsupported or invalid
├── DatasetError       a calibration or evaluation set is invalid
├── DeviceError        the device for calibration is not available, or failed
├── RecipeError        the recipe is invalid, or does not fit the checkpoint
│   └── ScaleError     a weight is too small or too large for the scales of its scheme
├── FormatError        the format does not support the plan
├── ArtifactError      the artifact or report is missing, invalid or changed
├── GateError          the gate file is invalid
├── SweepError         the sweep file is invalid, or a step of a sweep cannot be run
├── ClusterError       the cluster does not answer, or a worker died
├── OutputError        the output cannot be written
├── ReleaseError       the release cannot be made, or its files changed
└── EngineError        the engine failed
    └── MissingExtra   a package of the engine or format is not installed
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class McpmqError(Exception):
    """An error with a message for the user, and a hint for the next action."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), str(self), self.hint)  # to another process


def _restore(kind: type[McpmqError], message: str, hint: str) -> McpmqError:
    error = kind.__new__(kind)
    McpmqError.__init__(error, message, hint)
    return error


class CheckpointError(McpmqError):
    """The checkpoint is missing, of an unsupported family, or invalid."""


class DatasetError(McpmqError):
    """A calibration or evaluation set is invalid."""


class DeviceError(McpmqError):
    """The device for calibration is not available, or its process ended."""


class RecipeError(McpmqError):
    """The recipe is invalid, or does not fit the checkpoint."""


class ScaleError(RecipeError):
    """The magnitudes of a weight are too small or too large for the scales of its scheme."""


class FormatError(McpmqError):
    """The format does not support the plan."""


class ArtifactError(McpmqError):
    """An artifact or report is missing or invalid, or its files changed."""


class GateError(McpmqError):
    """The gate file is invalid."""


class SweepError(McpmqError):
    """The sweep file is invalid, or a step of a sweep cannot be run."""


class ClusterError(McpmqError):
    """The cluster does not answer, or a worker of it died."""


class OutputError(McpmqError):
    """The output cannot be written."""


class ReleaseError(McpmqError):
    """A release cannot be made because of its size, gate or license, or its files changed."""


class EngineError(McpmqError):
    """The engine that runs the model failed."""


class McpmqWarning(UserWarning):
    """A fact that slows work and does not change results; commands print it as a notice."""


class MissingExtra(EngineError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(f"`{module}` is not installed", f"run `pip install 'mcpmq[{extra}]'`")


@contextmanager
def prefix_errors(prefix: str) -> Iterator[None]:
    """Put a prefix, such as the name of a weight, before the message of every error that does not contain it."""
    try:
        yield
    except McpmqError as error:
        if prefix not in str(error):
            error.args = (f"{prefix}: {error}", *error.args[1:])
        raise
