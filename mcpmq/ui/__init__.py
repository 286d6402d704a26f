"""Print plans, artifacts, reports, verdicts and errors as tables, JSON or Markdown."""

from mcpmq.ui.inspect import (
    inspect_path,
    print_artifact,
    print_checkpoint,
    print_deviations,
    print_families,
    print_recipe,
    print_recipes,
    print_sample_set,
)
from mcpmq.ui.plans import print_plan, print_plans
from mcpmq.ui.reports import print_ablation, print_report, print_reports, print_verdicts
from mcpmq.ui.terminal import print_error, print_notice, print_table, progress_bars, set_verbosity

__all__ = [
    "inspect_path",
    "print_ablation",
    "print_artifact",
    "print_checkpoint",
    "print_deviations",
    "print_error",
    "print_families",
    "print_notice",
    "print_plan",
    "print_plans",
    "print_recipe",
    "print_recipes",
    "print_report",
    "print_reports",
    "print_sample_set",
    "print_table",
    "print_verdicts",
    "progress_bars",
    "set_verbosity",
]
