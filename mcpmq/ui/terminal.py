"""Print tables, errors, notices and progress bars to a terminal; JSON or Markdown on request."""

import json
import sys
import traceback
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from mcpmq.errors import McpmqError
from mcpmq.system.escaping import escape_controls
from mcpmq.system.progress import Progress, silent
from mcpmq.system.table import Table, format_megabytes
from mcpmq.ui.layout import lay_out
from mcpmq.ui.progress_bars import CommandProgress, ProgressBars, ProgressLines

STYLES = {"title": "bold", "plain": "", "dim": "dim"}


@dataclass(slots=True)
class _State:
    quiet: bool = False
    verbose: bool = False
    progress: CommandProgress | None = None


_state = _State()


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Set `quiet`: no progress and no notices; and `verbose`: errors with a traceback."""
    _state.quiet, _state.verbose = quiet, verbose


def is_quiet() -> bool:
    """Return whether progress and notices are off."""
    return _state.quiet


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console for texts: brackets and numbers in names are not markup."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def print_error(error: McpmqError) -> None:
    """Print the message and the hint of an error to stderr."""
    stop_progress()
    console = plain_console(stderr=True)
    if _state.verbose:
        console.print(escape_controls("".join(traceback.format_exception(error))), soft_wrap=True)
    message, hint = escape_controls(str(error)), escape_controls(error.hint)
    console.print(Text("error: ", "bold red").append(message, "default not bold"), soft_wrap=True)
    if hint:
        console.print(Text("\nhint: ", "bold cyan").append(hint, "default not bold"), soft_wrap=True)


def print_notice(text: str) -> None:
    """Print a line to stderr, unless quiet."""
    if not _state.quiet:
        plain_console(stderr=True).print(escape_controls(text), soft_wrap=True)


def start_progress(label: str) -> Progress:
    """Show that a command has begun, before it loads its libraries; bars in a terminal, lines elsewhere, or quiet."""
    stop_progress()
    console = plain_console(stderr=True)
    if _state.quiet:
        return silent
    _state.progress = ProgressBars(console, label) if console.is_terminal else ProgressLines(print_notice, label)
    return _state.progress


def progress_bars() -> Progress:
    """Return the progress of the command that has begun, or no progress."""
    return _state.progress or silent


def stop_progress() -> None:
    """Remove the progress of the command; results, errors and the shell have the terminal for themselves."""
    if _state.progress:
        _state.progress.stop()
    _state.progress = None


def print_table(table: Table, data: Any, *, as_json: bool = False, as_markdown: bool = False) -> None:
    """Print a result to stdout: as a table, its data as JSON, or the table as Markdown."""
    stop_progress()
    if as_json:
        print_json(data)
    elif as_markdown:
        sys.stdout.write(table.to_markdown())
    else:
        _print_terminal_table(table)


def print_json(data: Any) -> None:
    """Print data to stdout as JSON."""
    stop_progress()
    sys.stdout.write(escape_controls(json.dumps(data, indent=1, ensure_ascii=False)) + "\n")


def print_properties(kind: str, path: str, properties: dict[str, Any], *, as_json: bool) -> None:
    """Print names and values as a table of two columns, or as JSON."""
    data = {"kind": kind, "path": path, **properties}
    print_table(properties_table(kind, path, properties), data, as_json=as_json)


def properties_table(kind: str, path: str, properties: dict[str, Any]) -> Table:
    """Return names and values as a table of two columns."""
    rows = [(name.replace("_", " "), [_format_value(name, value)]) for name, value in properties.items()]
    return Table(f"{kind} {path}", [""], rows)


def _format_value(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_format_value(name, part)}" for key, part in value.items())
    if isinstance(value, list):
        return "; ".join(str(part) for part in value)
    if isinstance(value, int) and "bytes" in name:
        return format_megabytes(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_terminal_table(table: Table) -> None:
    console = plain_console()
    width = console.width if console.is_terminal else None  # a file or a pipe has no width
    for line in lay_out(_without_controls(table), width):
        console.print(Text(line.text, STYLES[line.style]), soft_wrap=True)


def _without_controls(table: Table) -> Table:
    rows = [(escape_controls(name), [*map(escape_controls, cells)]) for name, cells in table.rows]
    columns, notes = (list(map(escape_controls, texts)) for texts in (table.columns, table.notes))
    return Table(escape_controls(table.title), columns, rows, notes)
