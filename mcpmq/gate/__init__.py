"""Which differences are allowed, and what a report makes of them: the verdicts that continuous integration stops on."""

from mcpmq.gate.check import Verdict, check, refuse_changed
from mcpmq.gate.files import junit, sarif, summary, write_verdicts
from mcpmq.gate.gate import Bound, Gate

__all__ = ["Bound", "Gate", "Verdict", "check", "junit", "refuse_changed", "sarif", "summary", "write_verdicts"]
