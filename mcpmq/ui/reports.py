"""How a report, what changed between two, what components cost, and the verdicts of a gate look."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mcpmq.ui.terminal import print_table

if TYPE_CHECKING:  # help and errors must be there at once
    from mcpmq.gate import Verdict
    from mcpmq.report import Report
    from mcpmq.report.ablation import Split


def report(report: "Report", *, as_json: bool = False, as_markdown: bool = False) -> None:
    """The original beside its artifacts."""
    from mcpmq.report import table_of

    print_table(table_of(report), report.model_dump(mode="json"), as_json=as_json, as_markdown=as_markdown)


def reports(
    reports: Sequence["Report"], *, as_json: bool = False, as_markdown: bool = False, as_html: bool = False
) -> None:
    """One report; of several all artifacts in one table, and of two also what changed from the first to the second."""
    from mcpmq.report import Report, changes_table, page_of

    merged = Report.merged(reports)
    if as_html:
        sys.stdout.write(page_of(merged))
        return
    report(merged, as_json=as_json, as_markdown=as_markdown)
    if len(reports) == 2 and not as_json and (table := changes_table(*reports)):
        print_table(table, None, as_markdown=as_markdown)


def split(split: "Split", *, as_json: bool = False) -> None:
    """What each component costs."""
    from mcpmq.report.ablation import table_of

    print_table(table_of(split), split.model_dump(mode="json"), as_json=as_json)


def verdicts(verdicts: Sequence["Verdict"], *, as_json: bool = False) -> None:
    """A line a violated bound, or one that says that all hold."""
    if as_json:
        lines = [json.dumps([asdict(one) for one in verdicts], indent=1, ensure_ascii=False)]
    else:
        lines = [str(one) for one in verdicts if not one.holds] or [f"all {len(verdicts)} bounds hold"]
    sys.stdout.write("\n".join(lines) + "\n")
