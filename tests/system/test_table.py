"""Rows of text as Markdown."""

from mcpmq.system.table import Table, megabytes


def test_markdown_is_a_heading_a_table_and_notes() -> None:
    """Figures stand to the right, rows that say more are indented, and no cell can break the table."""
    table = Table("title", ["a", "b"], [("size", ["1", "2"]), ("  of it", ["x|y", "two\nlines"])], ["note"])
    assert table.markdown() == (
        "## title\n\n"
        "|  | a | b |\n| --- | ---: | ---: |\n| size | 1 | 2 |\n| &nbsp;&nbsp;of it | x\\|y | two lines |\n\n- note\n"
    )


def test_megabytes_have_three_figures_or_more() -> None:
    """Of 10^6 bytes."""
    sizes = (0, 12_345, 4_243_333, 48_000_000, 162_800_000, 16_200_000_000)
    assert [megabytes(size) for size in sizes] == ["0.00 MB", "0.01 MB", "4.24 MB", "48.0 MB", "163 MB", "16,200 MB"]
