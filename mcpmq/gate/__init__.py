"""Gates: allowed differences of artifacts, and their verdicts on a report."""

from mcpmq.gate.check import check, check_artifacts
from mcpmq.gate.files import VerdictFiles, junit_xml, sarif_json, summary_markdown
from mcpmq.gate.gate import Bound, Gate
from mcpmq.gate.verdict import Verdict, headline, verdict_table

__all__ = [
    "Bound",
    "Gate",
    "Verdict",
    "VerdictFiles",
    "check",
    "check_artifacts",
    "headline",
    "junit_xml",
    "sarif_json",
    "summary_markdown",
    "verdict_table",
]
