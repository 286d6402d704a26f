"""Tables of text for terminal and Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mcpmq.system.escaping import escape_cell, escape_markdown

Row: TypeAlias = tuple[str, Sequence[str]]  # name of the row, and one cell for every column


@dataclass(frozen=True, slots=True)
class Table:
    """Named rows and columns of text; a row name that begins with blanks is a detail of the row above."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def to_markdown(self) -> str:
        """Return a heading, a table and a list of notes; no text becomes Markdown syntax."""
        head = [["", *map(escape_cell, self.columns)], ["---", *["---:"] * len(self.columns)]]
        lines = [*head, *([_row_name(name), *map(escape_cell, cells)] for name, cells in self.rows)]
        table = [f"| {' | '.join(line)} |" for line in lines]
        notes = [f"- {escape_markdown(note)}" for note in self.notes]
        return "\n".join([f"## {escape_markdown(self.title)}", "", *table, *([""] if notes else []), *notes]) + "\n"


def _row_name(name: str) -> str:
    return "&nbsp;&nbsp;" * name.startswith(" ") + escape_cell(name.strip())


def format_megabytes(nbytes: int) -> str:
    """Return a size in MB (10^6 bytes) with at least three significant digits."""
    value = nbytes / 1e6
    return f"{value:,.0f} MB" if value >= 100 else f"{value:.1f} MB" if value >= 10 else f"{value:.2f} MB"


def format_seconds(seconds: float) -> str:
    """Return a duration: `12 s`, `3:05 min`, `1:02:03 h`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
