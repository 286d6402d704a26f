"""Reports: an original and its artifacts, with their differences, as JSON, Markdown and HTML."""

from mcpmq.report.compare import compare
from mcpmq.report.files import write_report
from mcpmq.report.page import render_html
from mcpmq.report.report import JSON_FILE, ArtifactResult, Report, SourceInfo
from mcpmq.report.tables import changes_table, report_table

__all__ = [
    "JSON_FILE",
    "ArtifactResult",
    "Report",
    "SourceInfo",
    "changes_table",
    "compare",
    "render_html",
    "report_table",
    "write_report",
]
