"""How a plan, an artifact, a report, a verdict or an error looks: a table, JSON, or Markdown."""

from mcpmq.show.plans import plan
from mcpmq.show.reports import report, reports, split, verdicts
from mcpmq.show.terminal import error, notice, print_table, progress, set_verbosity
from mcpmq.show.things import artifact, calibration_set, checkpoint, families, path

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
