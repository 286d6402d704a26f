"""Errors of the operating system become a message with the path and a hint."""

import errno
import os
import warnings
from pathlib import Path

import pytest

from mcpmq.cli import system_errors
from mcpmq.cli.system_errors import system_error
from mcpmq.errors import McpmqWarning
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


def test_warnings_are_notices(mcpmq: Command, monkeypatch: pytest.MonkeyPatch, tiny_set: Path) -> None:
    """A warning of mcpmq is one line without the place in the code; `--quiet` omits it; others are as in Python."""

    def warn(*_: object, **__: object) -> None:
        warnings.simplefilter("always")
        warnings.warn("compiled kernels are not cached", McpmqWarning, stacklevel=1)
        warnings.warn("deprecated", UserWarning, stacklevel=1)

    others: list[str] = []
    monkeypatch.setattr("mcpmq.cli._show_library_warning", lambda message, *_: others.append(str(message)))
    monkeypatch.setattr("mcpmq.ui.inspect_path", warn)
    loud, quiet = mcpmq("inspect", tiny_set), mcpmq("--quiet", "inspect", tiny_set)

    assert loud.stderr == "compiled kernels are not cached\n"
    assert quiet.stderr == ""
    assert others == ["deprecated", "deprecated"]
