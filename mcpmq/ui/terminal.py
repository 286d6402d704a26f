"""What a terminal gets: tables, errors, notices and progress bars; and JSON or Markdown where they were asked for."""

import json
import sys
import traceback
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table as DrawnTable
from rich.text import Text

from mcpmq.errors import McpmqError
from mcpmq.system.progress import Progress, silent
from mcpmq.system.table import Table, megabytes
from mcpmq.ui.progress_bars import Bars

UNBROKEN = ("weights", "becomes", "size")
LEFT = ("weights", "becomes", "why")  # columns of words; figures stand to the right


@dataclass(slots=True)
class _Verbosity:
    quiet: bool = False
    verbose: bool = False


_verbosity = _Verbosity()


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Quiet: no progress and no notices. Verbose: errors come with their traceback."""
    _verbosity.quiet, _verbosity.verbose = quiet, verbose


def _console(*, stderr: bool = False) -> Console:
    # Names hold brackets and numbers that are not to be read as markup.
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def error(error: McpmqError) -> None:
    """What went wrong and what to do about it."""
    console = _console(stderr=True)
    if _verbosity.verbose:
        console.print("".join(traceback.format_exception(error)), soft_wrap=True)
    console.print(Text("error: ", "bold red").append(str(error), "default not bold"), soft_wrap=True)
    if error.hint:
        console.print(Text("\nhint: ", "bold cyan").append(error.hint, "default not bold"), soft_wrap=True)


def notice(text: str) -> None:
    """A line beside the result, unless silence was asked for."""
    if not _verbosity.quiet:
        _console(stderr=True).print(text, soft_wrap=True)


def progress() -> Progress:
    """A bar for every loop that runs, on stderr; nothing where nobody looks or silence was asked for."""
    console = _console(stderr=True)
    return silent if _verbosity.quiet or not console.is_terminal else Bars(console)


def print_table(table: Table, facts: Any, *, as_json: bool = False, as_markdown: bool = False) -> None:
    """A result on stdout: drawn as a table, or its facts as JSON, or the table as Markdown."""
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    elif as_markdown:
        sys.stdout.write(table.markdown())
    else:
        _draw(table)


def print_facts(kind: str, where: str, facts: dict[str, Any], *, as_json: bool) -> None:
    rows = [(name.replace("_", " "), [_told(name, value)]) for name, value in facts.items()]
    print_table(Table(f"{kind} {where}", [""], rows), {"kind": kind, "path": where, **facts}, as_json=as_json)


def _told(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(name, one)}" for key, one in value.items())
    if isinstance(value, int) and "bytes" in name:
        return megabytes(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _draw(table: Table) -> None:
    console = _console()
    facts = list(table.columns) == [""]
    drawn = DrawnTable(box=box.SIMPLE_HEAD, show_header=not facts, pad_edge=False, padding=(0, 1, 0, 0))
    drawn.add_column("", no_wrap=True)
    whole_words = _widest(table) <= console.width
    for column in table.columns:
        justify: Literal["left", "right"] = "left" if facts or column in LEFT else "right"
        heading = _heading(column)
        width = max(map(len, heading.split()), default=0) if whole_words else None
        drawn.add_column(Text(heading), justify=justify, overflow="fold", no_wrap=column in UNBROKEN, min_width=width)
    for name, cells in table.rows:
        drawn.add_row(Text(name), *[Text(cell) for cell in cells], style="dim" if name.startswith(" ") else "")
    console.print(Text(table.title, "bold"))
    console.print(drawn)
    for note in table.notes:
        console.print(Text(note, "dim"))


def _heading(column: str) -> str:
    """A word a line, also of words with a hyphen, so that figures decide how wide a column is."""
    return column.replace("-", "-\n").replace(" ", "\n")


def _widest(table: Table) -> int:
    """Characters a line takes when headings break between words and nothing else breaks."""
    cells = zip(*(cells for _, cells in table.rows), strict=True)
    heads = [_heading(column).split() for column in table.columns]
    widths = [max(map(len, [*head, *column])) for head, column in zip(heads, cells, strict=True)]
    return max(len(name) for name, _ in table.rows) + sum(widths) + 2 * len(widths) + 3
