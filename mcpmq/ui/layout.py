"""Lay out a table as lines of text: words and numbers are never broken, and wide tables get letters as headings."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Literal

from rich.cells import cell_len

from mcpmq.system.table import Table

TEXT_COLUMNS = ("", "weights", "scheme", "method", "reason", "before", "after", "schemes")  # left-aligned
WRAPPED_COLUMNS = ("", "scheme", "reason", "before", "after")  # their cells wrap between words
GAP, MARGIN = "  ", " "
PLUS_MINUS, JOINED = " ±", "\N{NO-BREAK SPACE}±"  # a value and its interval stay on one line
Style = Literal["title", "plain", "dim"]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a laid out table, without trailing blanks."""

    text: str
    style: Style = "plain"


@dataclass(frozen=True, slots=True)
class _Column:
    heading: tuple[str, ...]  # lines
    cells: tuple[str, ...]
    name: str

    @property
    def is_text(self) -> bool:
        return self.name in TEXT_COLUMNS

    @property
    def wraps(self) -> bool:
        return self.name in WRAPPED_COLUMNS

    @property
    def width(self) -> int:
        return max(map(cell_len, (*self.heading, *self.cells)), default=0)

    @property
    def min_width(self) -> int:
        """The width of the longest word if the column wraps, else that of the longest cell."""
        texts = [word for cell in self.cells for word in cell.split()] if self.wraps else list(self.cells)
        return max(map(cell_len, (*self.heading, *texts)), default=0)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Columns next to the names of rows."""

    names: tuple[str, ...]
    columns: tuple[_Column, ...]
    legend: tuple[str, ...] = ()

    @property
    def label_width(self) -> int:
        return max(map(cell_len, self.names), default=0)

    @property
    def min_width(self) -> int:
        return self.label_width + sum(len(GAP) + column.min_width for column in self.columns) + 2 * len(MARGIN)


def lay_out(table: Table, width: int | None = None) -> list[Line]:
    """Return the lines of a table that fits into `width` cells; None, for a file or a pipe, wraps nothing.

    Headings are complete if they fit, on one line or one line per word; otherwise columns have letters, which are
    listed below the title. If the cells do not fit either, the columns are in several parts below each other. A word
    or a number that is wider than `width` alone is not broken.
    """
    grids = _grids(table, width)
    lines = [Line(table.title, "title"), *(Line(text, "dim") for text in grids[0].legend)]
    for grid in grids:
        lines += [Line(""), *_grid_lines(grid, width)]
    return [*lines, Line(""), *_note_lines(table.notes, width)] if table.notes else lines


def _grids(table: Table, width: int | None) -> list[_Grid]:
    names = tuple(name for name, _ in table.rows)
    columns = tuple(
        _Column((name,), tuple(cells[number] for _, cells in table.rows), name)
        for number, name in enumerate(table.columns)
    )
    grid = _Grid(names, columns)
    if width is None or grid.min_width <= width:
        return [grid]
    stacked = replace(grid, columns=tuple(replace(one, heading=tuple(one.name.split()) or ("",)) for one in columns))
    if stacked.min_width <= width or any(column.wraps for column in columns):
        return [stacked]
    return list(_parts(_with_letters(grid), width))


def _with_letters(grid: _Grid) -> _Grid:
    """Replace headings by letters, except single words that are not wider than the cells below them."""
    columns, legend = [], []
    letters = iter(ascii_uppercase) if len(grid.columns) <= len(ascii_uppercase) else map(str, range(1, 1000))
    for column in grid.columns:
        if " " in column.name or cell_len(column.name) > max(map(cell_len, column.cells), default=0):
            letter = next(letters)
            legend.append(f"{MARGIN}{letter}: {column.name}")
            column = replace(column, heading=(letter,))
        columns.append(column)
    return replace(grid, columns=tuple(columns), legend=tuple(legend))


def _parts(grid: _Grid, width: int) -> Iterator[_Grid]:
    """Yield the columns in parts that fit, of one column at least; a part has no rows that are empty in it."""
    begin = 0
    while begin < len(grid.columns):
        end = begin + 1
        while end < len(grid.columns) and replace(grid, columns=grid.columns[begin : end + 1]).min_width <= width:
            end += 1
        yield _without_empty_rows(replace(grid, columns=grid.columns[begin:end]))
        begin = end


def _without_empty_rows(grid: _Grid) -> _Grid:
    kept = [number for number in range(len(grid.names)) if any(column.cells[number] for column in grid.columns)]
    columns = tuple(replace(one, cells=tuple(one.cells[number] for number in kept)) for one in grid.columns)
    return replace(grid, names=tuple(grid.names[number] for number in kept), columns=columns)


def _grid_lines(grid: _Grid, width: int | None) -> Iterator[Line]:
    widths = _widths(grid, width)
    height = max(len(column.heading) for column in grid.columns)
    if any(any(column.heading) for column in grid.columns):
        for number in range(-height, 0):
            heading = [one.heading[number] if len(one.heading) >= -number else "" for one in grid.columns]
            yield Line(_joined(grid, "", heading, widths))
        yield Line("─" * (grid.label_width + sum(widths) + len(GAP) * len(widths) + 2 * len(MARGIN)))
    for name, *cells in zip(grid.names, *(column.cells for column in grid.columns), strict=True):
        wrapped = [
            _wrapped(cell, size) if column.wraps and width else [cell]
            for cell, column, size in zip(cells, grid.columns, widths, strict=True)
        ]
        style: Style = "dim" if name.startswith(" ") else "plain"
        for number in range(max(map(len, wrapped))):
            parts = [lines[number] if number < len(lines) else "" for lines in wrapped]
            yield Line(_joined(grid, "" if number else name, parts, widths), style)


def _widths(grid: _Grid, width: int | None) -> list[int]:
    """Return the widths of all columns; columns that wrap share the free width."""
    free = max(0, width - grid.min_width) if width is not None else None
    widths = []
    for column in grid.columns:
        missing = column.width - column.min_width
        given = missing if free is None else min(missing, free)
        widths.append(column.min_width + given)
        free = None if free is None else free - given
    return widths


def _joined(grid: _Grid, name: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    parts = [MARGIN + name + " " * (grid.label_width - cell_len(name))]
    for cell, column, width in zip(cells, grid.columns, widths, strict=True):
        blanks = " " * (width - cell_len(cell))
        parts.append(cell + blanks if column.is_text else blanks + cell)
    return GAP.join(parts).rstrip()


def _note_lines(notes: Sequence[str], width: int | None) -> Iterator[Line]:
    for note in notes:
        yield from (Line(text, "dim") for text in (_wrapped(note, width) if width else [note]))


def _wrapped(text: str, width: int) -> list[str]:
    """Return lines that end between words; a word is not broken, and a value keeps its interval."""
    text = text.replace(PLUS_MINUS, JOINED)
    lines = textwrap.wrap(text, max(1, width), break_long_words=False, break_on_hyphens=False)
    return [line.replace(JOINED, PLUS_MINUS) for line in lines] or [""]
