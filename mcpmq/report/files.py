"""The files of a report: JSON, and what is drawn from it."""

from pathlib import Path

from mcpmq.errors import OutputError
from mcpmq.report.page import page_of
from mcpmq.report.report import JSON_FILE, Report
from mcpmq.report.tables import table_of

MARKDOWN_FILE, HTML_FILE = "report.md", "report.html"


def write_report(report: Report, folder: Path) -> None:
    """Write report.json and, drawn from it, report.md and report.html.

    Raises:
        OutputError: the folder cannot be written to.
    """
    texts = {
        JSON_FILE: report.model_dump_json(indent=1) + "\n",
        MARKDOWN_FILE: table_of(report).markdown(),
        HTML_FILE: page_of(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            partial = folder / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(folder / name)
    except OSError as error:
        raise OutputError(f"the report cannot be written into `{folder}`: {error}", "name another folder") from error
