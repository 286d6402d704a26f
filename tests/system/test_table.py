"""Tables as Markdown."""

from mcpmq.system.table import Table, format_megabytes


def test_markdown_has_a_heading_a_table_and_notes() -> None:
    """Numbers are right-aligned, detail rows are indented, and special characters in a cell are escaped."""
    table = Table("title", ["a", "b"], [("size", ["1", "2"]), ("  of it", ["x|y", "two\nlines"])], ["note"])

    assert table.to_markdown() == (
        "## title\n\n"
        "|  | a | b |\n| --- | ---: | ---: |\n| size | 1 | 2 |\n| &nbsp;&nbsp;of it | x\\|y | two lines |\n\n- note\n"
    )


def test_megabytes_have_at_least_three_digits() -> None:
    """One MB is 10^6 bytes."""
    sizes = (0, 12_345, 4_243_333, 48_000_000, 162_800_000, 16_200_000_000)

    assert [format_megabytes(size) for size in sizes] == [
        "0.00 MB",
        "0.01 MB",
        "4.24 MB",
        "48.0 MB",
        "163 MB",
        "16,200 MB",
    ]
