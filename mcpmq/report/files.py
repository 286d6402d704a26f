"""Write the files of a report."""

from pathlib import Path

from mcpmq.errors import OutputError
from mcpmq.report.page import render_html
from mcpmq.report.report import JSON_FILE, Report
from mcpmq.report.tables import report_table

MARKDOWN_FILE, HTML_FILE = "report.md", "report.html"


def write_report(report: Report, folder: Path) -> None:
    """Write report.json, and report.md and report.html, which are rendered from it.

    Raises:
        OutputError: the folder cannot be written.
    """
    texts = {
        JSON_FILE: report.model_dump_json(indent=1) + "\n",
        MARKDOWN_FILE: report_table(report).to_markdown(),
        HTML_FILE: render_html(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            partial = folder / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(folder / name)
    except OSError as error:
        raise OutputError(f"the report cannot be written to `{folder}`: {error}", "give another folder") from error
