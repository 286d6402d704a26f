"""Gates: allowed differences of artifacts, and their verdicts on a report."""

from mcpmq.gate.check import Verdict, check, check_artifacts
from mcpmq.gate.files import VerdictFiles, junit_xml, sarif_json, summary_markdown
from mcpmq.gate.gate import Bound, Gate

__all__ = [
    "Bound",
    "Gate",
    "Verdict",
    "VerdictFiles",
    "check",
    "check_artifacts",
    "junit_xml",
    "sarif_json",
    "summary_markdown",
]
