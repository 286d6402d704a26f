"""Errors, notices and progress in a terminal."""

import subprocess
import sys

import pytest

from mcpmq import ui
from mcpmq.errors import CheckpointError
from mcpmq.system.progress import silent
from mcpmq.system.table import Table
from tests.terminal import run_in_terminal


def test_an_error_has_a_message_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    """Both are on stderr without color; brackets are not markup."""
    ui.print_error(CheckpointError("no `config.json` in `[a]`", "point at a folder"))

    printed = capsys.readouterr()
    assert printed.err == "error: no `config.json` in `[a]`\n\nhint: point at a folder\n"
    assert printed.out == ""


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names in errors, notices, tables and JSON are displayed with escapes."""
    name = "\x1b[2J\x9b\u202e"
    ui.print_error(CheckpointError(name, name))
    ui.print_notice(name)
    table = Table(name, [name], [(name, [name])], [name])
    ui.print_table(table, {name: name})
    ui.print_table(table, {name: name}, as_json=True)
    ui.print_table(table, {name: name}, as_markdown=True)

    printed = capsys.readouterr()
    for text in printed:
        assert not {"\x1b", "\x9b", "\u202e"} & set(text)
        assert "\\u001b" in text


def test_verbose_errors_have_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """`verbose` adds the traceback."""
    ui.set_verbosity(verbose=True)
    try:
        raise CheckpointError("broken", "correct it")
    except CheckpointError as error:
        ui.print_error(error)

    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_notices_are_on_stderr_unless_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """`quiet` suppresses notices, and stdout has none."""
    ui.print_notice("a word")
    ui.set_verbosity(quiet=True)
    ui.print_notice("another")

    assert capsys.readouterr() == ("", "a word\n")


def test_progress_begins_with_the_command_and_ends_with_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe the first line is printed at once; a result, an error or `quiet` ends it."""
    assert ui.progress_bars() is silent
    progress = ui.start_progress("converting x")
    assert capsys.readouterr().err == "converting x\n"
    assert list(ui.progress_bars()([1], "calibrating")) == [1]
    assert ui.progress_bars() is progress
    ui.print_table(Table("t", ["a"], [("b", ["c"])]), None)
    assert ui.progress_bars() is silent

    ui.set_verbosity(quiet=True)
    assert ui.start_progress("converting x") is silent


def test_no_color_disables_colors() -> None:
    """An error has colors in a terminal, and none with NO_COLOR."""
    code = "from mcpmq import ui; from mcpmq.errors import McpmqError; ui.print_error(McpmqError('x', 'y'))"

    assert "\x1b[1;31m" in run_in_terminal(code)
    assert "31m" not in run_in_terminal(code, NO_COLOR="1")


def test_printing_imports_no_torch() -> None:
    """Reports and plans are printed without torch and transformers."""
    code = (
        "import sys; from mcpmq import ui, report, plan; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert printed.stdout.split() == ["False", "False"]
