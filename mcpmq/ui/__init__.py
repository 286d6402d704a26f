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
from mcpmq.ui.next_steps import (
    print_conversion_steps,
    print_exported_steps,
    print_imatrix_steps,
    print_push_steps,
    print_quantized_steps,
    print_release_steps,
    print_report_paths,
    print_run_command,
    print_search_steps,
    print_written_files,
)
from mcpmq.ui.plans import print_plan, print_plans
from mcpmq.ui.reports import print_ablation, print_report, print_reports, print_verdicts
from mcpmq.ui.terminal import (
    print_error,
    print_notice,
    print_table,
    progress_bars,
    set_verbosity,
    start_progress,
    stop_progress,
)

__all__ = [
    "inspect_path",
    "print_ablation",
    "print_artifact",
    "print_checkpoint",
    "print_conversion_steps",
    "print_deviations",
    "print_error",
    "print_exported_steps",
    "print_families",
    "print_imatrix_steps",
    "print_notice",
    "print_plan",
    "print_plans",
    "print_push_steps",
    "print_quantized_steps",
    "print_recipe",
    "print_recipes",
    "print_release_steps",
    "print_report",
    "print_report_paths",
    "print_reports",
    "print_run_command",
    "print_sample_set",
    "print_search_steps",
    "print_table",
    "print_verdicts",
    "print_written_files",
    "progress_bars",
    "set_verbosity",
    "start_progress",
    "stop_progress",
]
