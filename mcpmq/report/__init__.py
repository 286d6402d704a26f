"""Reports: an original and its artifacts, with their differences, as JSON, Markdown and HTML."""

from mcpmq.report.compare import compare
from mcpmq.report.files import check_report_folder, report_folder, write_report
from mcpmq.report.page import render_html
from mcpmq.report.report import JSON_FILE, ArtifactResult, Report, SourceInfo
from mcpmq.report.tables import accuracy_table, changes_table, report_table, report_title, summary_table

__all__ = [
    "JSON_FILE",
    "ArtifactResult",
    "Report",
    "SourceInfo",
    "accuracy_table",
    "changes_table",
    "check_report_folder",
    "compare",
    "render_html",
    "report_folder",
    "report_table",
    "report_title",
    "summary_table",
    "write_report",
]
