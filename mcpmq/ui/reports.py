"""Print reports, the change between two reports, component ablations, and the verdicts of a gate."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mcpmq.ui.terminal import print_table

if TYPE_CHECKING:  # --help and errors import no library
    from mcpmq.gate import Verdict
    from mcpmq.report import Report
    from mcpmq.report.ablation import ComponentAblation


def print_report(report: "Report", *, as_json: bool = False, as_markdown: bool = False, all_rows: bool = False) -> None:
    """Print the original and its artifacts in one table, with the most important rows or all; Markdown has all."""
    from mcpmq.report import report_table, summary_table

    table = report_table(report) if all_rows or as_markdown else summary_table(report)
    print_table(table, report.model_dump(mode="json"), as_json=as_json, as_markdown=as_markdown)


def print_reports(
    reports: Sequence["Report"],
    *,
    as_json: bool = False,
    as_markdown: bool = False,
    as_html: bool = False,
    all_rows: bool = False,
) -> None:
    """Print the artifacts of all reports in one table, and for two reports also the change between them."""
    from mcpmq.report import Report, changes_table, render_html

    merged = Report.merge(reports)
    if as_html:
        sys.stdout.write(render_html(merged))
        return
    print_report(merged, as_json=as_json, as_markdown=as_markdown, all_rows=all_rows)
    if len(reports) == 2 and not as_json and (table := changes_table(*reports)):
        print_table(table, None, as_markdown=as_markdown)


def print_ablation(ablation: "ComponentAblation", *, as_json: bool = False) -> None:
    """Print the loss of every component."""
    from mcpmq.report.ablation import ablation_table

    print_table(ablation_table(ablation), ablation.model_dump(mode="json"), as_json=as_json)


def print_verdicts(verdicts: Sequence["Verdict"], *, as_json: bool = False) -> None:
    """Print value, interval, limits and margin of every bound, then a line for every bound that does not hold."""
    from mcpmq.gate import verdict_table

    failed = any(verdict.status == "failed" for verdict in verdicts)
    data = {"passed": not failed, "bounds": [verdict.to_dict() for verdict in verdicts]}
    print_table(verdict_table(verdicts), data, as_json=as_json)
