"""Everything the user can be told has gone wrong, and what to do about it.

McpmqError
├── CheckpointError    the path is no checkpoint that can be read
├── CalibrationError   the calibration or held-out set is broken
├── RecipeError        the recipe is not valid, or does not fit the checkpoint
├── FormatError        the format cannot hold what the plan asks of it
├── ArtifactError      the path is no artifact or report, or its files changed
├── GateError          the file of allowed differences is not valid
├── OutputError        the output cannot be written
├── ReleaseError       a release may not be made, or is not what it says
└── EngineError        the engine that should run the model failed
    └── MissingExtra   the engine or format is not installed
"""


class McpmqError(Exception):
    """An error for the user: what happened with the numbers, and a hint on what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CheckpointError(McpmqError):
    """The path is no checkpoint that mcpmq can read."""


class CalibrationError(McpmqError):
    """The set of images and questions is broken."""


class RecipeError(McpmqError):
    """The recipe is not valid, or does not fit the checkpoint."""


class FormatError(McpmqError):
    """The format cannot hold what the plan asks of it."""


class ArtifactError(McpmqError):
    """The path is no artifact of mcpmq, or its files are not the ones that were written."""


class GateError(McpmqError):
    """The file that says which differences are allowed is not valid."""


class OutputError(McpmqError):
    """The output cannot be written."""


class ReleaseError(McpmqError):
    """A release may not be made, for its size, its gate or its licence; or it is not what it says it is."""


class EngineError(McpmqError):
    """The engine that should run the model failed."""


class MissingExtra(EngineError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(f"`{module}` is not installed", f"run `pip install 'mcpmq[{extra}]'`")
