"""Errors of the operating system become a message with the path and a hint."""

import errno
import os
from pathlib import Path

import pytest

from mcpmq.cli import system_errors
from mcpmq.cli.system_errors import system_error
from tests.commands import Command


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "`a/b`: Read-only file system", "another disk"),
        (OSError(errno.EFBIG, "File too large"), "File too large", "ulimit -f"),
        (OSError("77 requested and 8 written"), "77 requested and 8 written", "check that the path"),
        (MemoryError(), "out of memory", "more memory"),
    ],
)
def test_errors_of_the_system_have_a_hint(error: OSError | MemoryError, message: str, hint: str) -> None:
    """The message has the path, the hint depends on the error number."""
    found = system_error(error)

    assert str(found) == message
    assert hint in found.hint


def test_commands_end_without_a_traceback(mcpmq: Command, monkeypatch: pytest.MonkeyPatch, tiny_set: Path) -> None:
    """A failing disk is reported with exit code 1."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "manifest.jsonl")

    monkeypatch.setattr("mcpmq.ui.inspect_path", lambda *_, **__: fail())
    result = mcpmq("inspect", tiny_set)

    assert result.exit_code == 1
    assert result.stderr == f"error: `manifest.jsonl`: Input/output error\n\nhint: {system_errors.HINTS[errno.EIO]}\n"
