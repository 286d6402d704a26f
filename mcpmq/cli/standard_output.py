"""Standard output that a reader has closed: the rest is discarded, and the exit code of the command remains."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def keep_exit_code() -> Iterator[None]:
    """Print results; a closed pipe does not change the exit code of the command.

    rich ends the process when it prints into a closed pipe; inside of the block it does not.
    """
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):
        discard_output()


def discard_output() -> None:
    """Discard the output that could not be written, before the interpreter tries to write it again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = null_output()


def null_output() -> TextIO:
    """Return a stream that discards everything, open until the process ends."""
    return Path(os.devnull).open("w")
