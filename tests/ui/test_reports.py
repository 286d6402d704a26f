"""Reports in a terminal, as JSON and as Markdown."""

from pathlib import Path

import pytest

from mcpmq import ui
from mcpmq.report import Report, report_table
from tests.fake_reports import make_report


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("artifacts", [1, 2, 3, 4])
def test_a_report_fits_80_columns(artifacts: int, capsys: pytest.CaptureFixture[str]) -> None:
    """No line is wider than the terminal, and all cells of all artifacts are printed."""
    ui.print_report(make_report(artifacts), all_rows=True)

    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).count("16.1") == 1 + artifacts
    assert all(cell in printed for _, cells in report_table(make_report(artifacts)).rows for cell in cells)
    assert "phone-int4" in printed
    assert "model [v2] on 30 samples of heldout" in lines[0]


def test_a_pipe_has_one_line_per_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal every row and every note is one line, also if COLUMNS is set."""
    monkeypatch.setenv("COLUMNS", "80")
    report = Report.load(Path(__file__).parents[2] / "benchmarks" / "results" / "reference.json")
    ui.print_report(report, all_rows=True)
    lines = capsys.readouterr().out.splitlines()

    table = report_table(report)
    assert len(lines) == 1 + 1 + 2 + len(table.rows) + 1 + len(table.notes)
    assert list(table.notes) == lines[-len(table.notes) :]


def test_the_most_important_rows_are_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Without `all_rows` the table has size, bits, memory, accuracy by group and speed, and names the option."""
    ui.print_report(make_report(1))
    names = [line[: line.find("  ", 3)].strip() for line in capsys.readouterr().out.splitlines()]

    assert {"total size, MB", "bits per weight", "peak RSS, MB", "decode *, tok/s"} <= set(names)
    assert [name for name in names if name.startswith("perplexity")] == ["perplexity, images", "perplexity, text"]
    assert not {"exact match, %", "load time *, s"} & set(names)
    assert any(name.startswith("--all: ") for name in names)


def test_json_is_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    """The output is valid input."""
    ui.print_report(make_report(), as_json=True)

    assert Report.model_validate_json(capsys.readouterr().out) == make_report()


def test_markdown_has_the_numbers_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Every number of the Markdown table is in the terminal table."""
    ui.print_report(make_report(2), as_markdown=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    ui.print_report(make_report(2), all_rows=True)
    printed = capsys.readouterr().out

    cells = [cell.strip() for line in lines for cell in line.strip("|").split("|")]
    numbers = [word for cell in cells if cell[:1].isdigit() for word in cell.split()]
    assert len(numbers) > 30
    assert all(number in printed for number in numbers)
