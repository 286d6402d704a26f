"""Layout of tables at several widths."""

import os
from pathlib import Path

import pytest

from mcpmq.formats.support import support_table
from mcpmq.report import Report, report_table, summary_table
from mcpmq.system.table import Table
from mcpmq.ui.layout import Line, lay_out
from tests.fake_reports import make_report

ROOT = Path(__file__).parents[2]
SNAPSHOTS = Path(__file__).parent / "snapshots"
WIDTHS = (80, 100, 140, None)  # None: piped
REFERENCE = Report.load(ROOT / "benchmarks" / "results" / "reference.json")
TABLES = {
    "summary-of-four": summary_table(REFERENCE),
    "report-of-four": report_table(REFERENCE),
    "summary-of-one": summary_table(REFERENCE.model_copy(update={"artifacts": REFERENCE.artifacts[:1]})),
    "families": support_table(),
}


def text_of(lines: list[Line]) -> str:
    """Return the lines as text."""
    return "\n".join(line.text for line in lines) + "\n"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_tables_have_their_recorded_layout(name: str, width: int | None) -> None:
    """At 80, 100 and 140 columns and piped; MCPMQ_UPDATE_SNAPSHOTS=1 records the layouts again."""
    file = SNAPSHOTS / f"{name}-{width or 'piped'}.txt"
    found = text_of(lay_out(TABLES[name], width))
    if os.environ.get("MCPMQ_UPDATE_SNAPSHOTS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(found)

    assert found == file.read_text()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_words_and_intervals_are_not_broken(name: str, width: int | None) -> None:
    """Every cell and heading is on one line, the ± beside its value, and no line is wider than the terminal."""
    printed = text_of(lay_out(TABLES[name], width))

    cells = {cell for _, cells in TABLES[name].rows for cell in cells}
    assert len(cells) > 3
    assert all(cell in printed for cell in cells)
    words = {word for heading in TABLES[name].columns for word in heading.split()}
    assert words <= set(printed.split())
    if width:
        assert max(map(len, printed.splitlines())) <= width


@pytest.mark.parametrize("columns", range(1, 31))
def test_many_artifacts_have_letters(columns: int) -> None:
    """Names that do not fit are in a legend; more columns than letters are numbered; no cell is lost."""
    names = [f"gguf a-recipe-with-a-long-name-{number}" for number in range(columns)]
    table = Table("title", names, [("perplexity, images", [f"1.{number:03} ±0.010" for number in range(columns)])])

    printed = text_of(lay_out(table, 80))

    assert max(map(len, printed.splitlines())) <= 80
    assert all(f"1.{number:03} ±0.010" in printed for number in range(columns))
    assert {word for name in names for word in name.split()} <= set(printed.split())
    if columns > 3:
        assert ("A: " if columns <= 26 else "1: ") + names[0] in printed


def test_sentences_wrap_between_words() -> None:
    """A column of reasons wraps in a terminal and not in a pipe; a path is not broken, and neither is an interval."""
    reason = "the last tensor of a/very/long/path/that-is-wider-than-the-terminal/model.safetensors is 1.25 ±0.50"
    table = Table("title", ["size", "reason"], [("weights", ["1 MB", reason])], [reason])

    narrow, piped = text_of(lay_out(table, 30)), text_of(lay_out(table))

    assert "a/very/long/path/that-is-wider-than-the-terminal/model.safetensors" in narrow
    assert "1.25 ±0.50" in narrow
    assert reason in piped
    assert narrow.count("\n") > piped.count("\n")


def test_a_narrow_terminal_has_one_column_below_the_other() -> None:
    """In 50 columns every cell of four artifacts is complete."""
    table = summary_table(make_report(4))
    printed = text_of(lay_out(table, 50))

    assert all(cell in printed for _, cells in table.rows for cell in cells)


def test_wide_characters_count_twice() -> None:
    """Columns below a name with ideographs are aligned."""
    lines = lay_out(Table("t", ["x"], [("日本", ["1"]), ("ab", ["2"])]), 80)

    assert lines[-2].text == " 日本  1"
    assert lines[-1].text == " ab    2"
