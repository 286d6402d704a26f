"""Which differences are allowed, and what a report makes of them: the verdicts that continuous integration stops on."""

from mcpmq.gate.check import Verdict, check, refuse_changed
from mcpmq.gate.files import VerdictFiles, junit, sarif, summary
from mcpmq.gate.gate import Bound, Gate

__all__ = ["Bound", "Gate", "Verdict", "VerdictFiles", "check", "junit", "refuse_changed", "sarif", "summary"]
