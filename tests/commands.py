"""Types of the `mcpmq` fixture, which runs a command line in this process."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Exit code and output of a command."""

    exit_code: int
    stdout: str
    stderr: str


Command = Callable[..., CommandResult]
