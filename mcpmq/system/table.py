"""Rows of text with headings: what a terminal and Markdown are drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Row: TypeAlias = tuple[str, Sequence[str]]  # what it is about, and a cell for every column


@dataclass(frozen=True, slots=True)
class Table:
    """Named rows under named columns; a name that begins with blanks says more about the row above."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """As a heading, a table and a list of notes."""
        head = [["", *self.columns], ["---", *["---:"] * len(self.columns)]]
        lines = [*head, *([_dressed(name), *cells] for name, cells in self.rows)]
        drawn = [f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"## {self.title}", "", *drawn, *([""] if notes else []), *notes]) + "\n"


def _dressed(name: str) -> str:
    return f"&nbsp;&nbsp;{name.strip()}" if name.startswith(" ") else name


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def megabytes(nbytes: int) -> str:
    """In MB of 10^6 bytes, three figures or more."""
    value = nbytes / 1e6
    return f"{value:,.0f} MB" if value >= 100 else f"{value:.1f} MB" if value >= 10 else f"{value:.2f} MB"
