"""Reports in a terminal, as JSON and as Markdown."""

from pathlib import Path

import pytest

from mcpmq import ui
from mcpmq.report import Report, report_table
from tests.fake_reports import make_report


@pytest.mark.parametrize("artifacts", [1, 2, 3, 4])
def test_a_report_of_four_artifacts_fits_80_columns(artifacts: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Every number is complete on its line, and headings break between words only."""
    ui.print_report(make_report(artifacts))

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line.split() for line in lines if "total size" in line)
    assert row == ["total", "size,", "MB", "16.1", *["16.1"] * artifacts]
    assert "phone-int4" in "\n".join(lines)
    assert "model [v2] on 30 samples of heldout" in lines[0]


def test_80_columns_break_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    """Every word of every cell of a measured report with four artifacts is complete on its line."""
    report = Report.load(Path(__file__).parents[2] / "benchmarks" / "results" / "reference.json")
    ui.print_report(report)
    printed = capsys.readouterr().out

    assert max(map(len, printed.splitlines())) <= 80
    words = {word for _, cells in report_table(report).rows for cell in cells for word in cell.split()}
    assert len(words) > 100
    assert words <= set(printed.split())


def test_a_narrow_terminal_truncates_no_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 50 columns cells wrap."""
    monkeypatch.setenv("COLUMNS", "50")
    ui.print_report(make_report(4))

    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 50
    assert "…" not in printed
    assert printed.count("phon") >= 4


def test_json_is_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    """The output is valid input."""
    ui.print_report(make_report(), as_json=True)

    assert Report.model_validate_json(capsys.readouterr().out) == make_report()


def test_markdown_has_the_numbers_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Every number of the Markdown table is in the terminal table."""
    ui.print_report(make_report(2), as_markdown=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    ui.print_report(make_report(2))
    printed = capsys.readouterr().out

    cells = [cell.strip() for line in lines for cell in line.strip("|").split("|")]
    numbers = [word for cell in cells if cell[:1].isdigit() for word in cell.split()]
    assert len(numbers) > 30
    assert all(number in printed for number in numbers)
