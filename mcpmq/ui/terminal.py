"""Print tables, errors, notices and progress bars to a terminal; JSON or Markdown on request."""

import json
import sys
import traceback
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from mcpmq.errors import McpmqError
from mcpmq.system.escaping import escape_controls
from mcpmq.system.progress import Progress, silent
from mcpmq.system.table import Table, format_megabytes
from mcpmq.ui.progress_bars import ProgressBars

UNWRAPPED_COLUMNS = ("weights", "scheme", "size")
COLUMN_GAP, TABLE_EDGES = 2, 3  # spaces between two columns, and around the table
LEFT_COLUMNS = ("weights", "scheme", "reason")  # text; numbers are right-aligned


@dataclass(slots=True)
class _Verbosity:
    quiet: bool = False
    verbose: bool = False


_verbosity = _Verbosity()


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Set `quiet`: no progress and no notices; and `verbose`: errors with a traceback."""
    _verbosity.quiet, _verbosity.verbose = quiet, verbose


def _console(*, stderr: bool = False) -> Console:
    # Brackets and numbers in names are not markup.
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def print_error(error: McpmqError) -> None:
    """Print the message and the hint of an error to stderr."""
    console = _console(stderr=True)
    if _verbosity.verbose:
        console.print(escape_controls("".join(traceback.format_exception(error))), soft_wrap=True)
    message, hint = escape_controls(str(error)), escape_controls(error.hint)
    console.print(Text("error: ", "bold red").append(message, "default not bold"), soft_wrap=True)
    if hint:
        console.print(Text("\nhint: ", "bold cyan").append(hint, "default not bold"), soft_wrap=True)


def print_notice(text: str) -> None:
    """Print a line to stderr, unless quiet."""
    if not _verbosity.quiet:
        _console(stderr=True).print(escape_controls(text), soft_wrap=True)


def progress_bars() -> Progress:
    """Return progress bars on stderr, or no progress if quiet or if stderr is not a terminal."""
    console = _console(stderr=True)
    return silent if _verbosity.quiet or not console.is_terminal else ProgressBars(console)


def print_table(table: Table, data: Any, *, as_json: bool = False, as_markdown: bool = False) -> None:
    """Print a result to stdout: as a table, its data as JSON, or the table as Markdown."""
    if as_json:
        sys.stdout.write(escape_controls(json.dumps(data, indent=1, ensure_ascii=False)) + "\n")
    elif as_markdown:
        sys.stdout.write(table.to_markdown())
    else:
        _print_terminal_table(table)


def print_properties(kind: str, path: str, properties: dict[str, Any], *, as_json: bool) -> None:
    """Print names and values as a table of two columns, or as JSON."""
    rows = [(name.replace("_", " "), [_format_value(name, value)]) for name, value in properties.items()]
    print_table(Table(f"{kind} {path}", [""], rows), {"kind": kind, "path": path, **properties}, as_json=as_json)


def _format_value(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_format_value(name, part)}" for key, part in value.items())
    if isinstance(value, int) and "bytes" in name:
        return format_megabytes(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_terminal_table(table: Table) -> None:
    console, table = _console(), _without_controls(table)
    terminal_table = _terminal_table(table, console.width)
    for name, cells in table.rows:
        style = "dim" if name.startswith(" ") else ""
        terminal_table.add_row(Text(name), *[Text(cell) for cell in cells], style=style)
    console.print(Text(table.title, "bold"))
    console.print(terminal_table)
    for note in table.notes:
        console.print(Text(note, "dim"))


def _without_controls(table: Table) -> Table:
    rows = [(escape_controls(name), [*map(escape_controls, cells)]) for name, cells in table.rows]
    columns, notes = (list(map(escape_controls, texts)) for texts in (table.columns, table.notes))
    return Table(escape_controls(table.title), columns, rows, notes)


def _terminal_table(table: Table, console_width: int) -> TerminalTable:
    """Return the table with its columns and without rows; a narrow terminal breaks headings before numbers."""
    one_column = list(table.columns) == [""]
    terminal_table = TerminalTable(
        box=box.SIMPLE_HEAD, show_header=not one_column, pad_edge=False, padding=(0, 1, 0, 0)
    )
    terminal_table.add_column("", no_wrap=True)
    for column, width in zip(table.columns, _min_widths(table, console_width), strict=True):
        justify: Literal["left", "right"] = "left" if one_column or column in LEFT_COLUMNS else "right"
        no_wrap = column in UNWRAPPED_COLUMNS
        heading = Text(_heading(column))
        terminal_table.add_column(heading, justify=justify, overflow="fold", no_wrap=no_wrap, min_width=width)
    return terminal_table


def _heading(column: str) -> str:
    """Return a heading with one word per line, so that the width of a column is that of its numbers."""
    return column.replace("-", "-\n").replace(" ", "\n")


def _min_widths(table: Table, console_width: int) -> list[int]:
    """Return the minimum characters of every column but the first: the first of these that fits the console.

    Headings break between words and cells do not break; headings and cells break between words; cells break between
    words and headings anywhere. If none fits, the minimum is 0, and everything can break.
    """
    cells = [list(column) for column in zip(*(cells for _, cells in table.rows), strict=True)]
    headings = [_heading(column).split() for column in table.columns]
    words = [[word for cell in column for word in cell.split()] for column in cells]
    both = [[*heading, *column] for heading, column in zip(headings, words, strict=True)]
    whole = [[*heading, *column] for heading, column in zip(headings, cells, strict=True)]
    for parts in (whole, both, words):
        widths = [max(map(len, column), default=0) for column in parts]
        label_width = max(len(name) for name, _ in table.rows)
        if label_width + sum(widths) + COLUMN_GAP * len(widths) + TABLE_EDGES <= console_width:
            return widths
    return [0] * len(headings)
