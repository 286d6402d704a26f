"""Write the files of a report."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mcpmq.artifact import RELEASE_RECORD
from mcpmq.errors import McpmqError, OutputError
from mcpmq.report.page import render_html
from mcpmq.report.report import JSON_FILE, Report
from mcpmq.report.tables import report_table
from mcpmq.system.durable_file import write_durably
from mcpmq.system.json_file import read_json
from mcpmq.system.output import check_distinct, lock_folder, output_errors

MARKDOWN_FILE, HTML_FILE = "report.md", "report.html"


@contextmanager
def report_folder(folder: Path, inputs: Mapping[Path, str]) -> Iterator[None]:
    """Hold the lock of a folder for reports; files in it are kept, except an earlier report.

    Raises:
        OutputError: the folder is inside of an input, or a release, or has a report that mcpmq did not write; or
            another process writes into it.
    """
    check_report_folder(folder, inputs)
    with lock_folder(folder):
        yield


def check_report_folder(folder: Path, inputs: Mapping[Path, str]) -> None:
    """Check that a report can be written into a folder.

    Raises:
        OutputError: it cannot.
    """
    check_distinct(folder, inputs)
    with output_errors(folder):
        is_release = (folder / RELEASE_RECORD).is_file()
        present = [name for name in (JSON_FILE, MARKDOWN_FILE, HTML_FILE) if os.path.lexists(folder / name)]
    if is_release:
        raise OutputError(f"`{folder}` is a release, whose files do not change", "give another folder with `--out`")
    if present and not _is_report(folder / JSON_FILE):
        raise OutputError(
            f"`{folder / present[0]}` is not a report that mcpmq wrote", "give another folder, or delete this file"
        )


def _is_report(file: Path) -> bool:
    try:
        return {"eval_set", "artifacts"} <= read_json(file).keys()
    except (McpmqError, OSError):
        return False


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
            write_durably(folder / name, text)
    except OSError as error:
        raise OutputError(f"the report cannot be written to `{folder}`: {error}", "give another folder") from error
