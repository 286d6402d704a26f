"""The original beside its artifacts, with their differences; report.json is the truth, all else is drawn from it."""

from mcpmq.report.compare import compare
from mcpmq.report.files import write_report
from mcpmq.report.page import page_of
from mcpmq.report.report import JSON_FILE, Entry, Report, SourceFacts
from mcpmq.report.tables import changes_table, table_of

__all__ = [
    "JSON_FILE",
    "Entry",
    "Report",
    "SourceFacts",
    "changes_table",
    "compare",
    "page_of",
    "table_of",
    "write_report",
]
