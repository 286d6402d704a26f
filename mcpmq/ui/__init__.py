"""How a plan, an artifact, a report, a verdict or an error looks: a table, JSON, or Markdown."""

from mcpmq.ui.inspect import artifact, calibration_set, checkpoint, families, path
from mcpmq.ui.plans import plan
from mcpmq.ui.reports import report, reports, split, verdicts
from mcpmq.ui.terminal import error, notice, print_table, progress, set_verbosity

__all__ = [
    "artifact",
    "calibration_set",
    "checkpoint",
    "error",
    "families",
    "notice",
    "path",
    "plan",
    "print_table",
    "progress",
    "report",
    "reports",
    "set_verbosity",
    "split",
    "verdicts",
]
