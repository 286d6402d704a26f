"""What looks and judges: at any path, at families, at reports, and at reports through a gate."""

from pathlib import Path
from typing import Annotated

import typer

from mcpmq.cli.options import LOOK, Json

commands = typer.Typer()
GATE_FAILED = 3


@commands.command(rich_help_panel=LOOK)
def inspect(path: Annotated[Path, typer.Argument(metavar="PATH")], json: Json = False) -> None:
    """Say what a path is: a checkpoint, a set of images and questions, an artifact, a report"""
    from mcpmq import ui

    ui.path(path, as_json=json)


@commands.command(rich_help_panel=LOOK)
def families(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, as for a README")] = False,
    json: Json = False,
) -> None:
    """List the models that can be converted, and what is refused or differs in which format"""
    from mcpmq import ui

    ui.families(as_json=json, as_markdown=markdown)


@commands.command(rich_help_panel=LOOK)
def report(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT...", help="report.json files, or their folders")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, as for a pull request")] = False,
    html: Annotated[bool, typer.Option("--html", help="Print a page that fetches nothing")] = False,
    json: Json = False,
) -> None:
    """Show one or many reports in one table, and of two what changed"""
    from mcpmq import ui
    from mcpmq.report import Report

    ui.reports([Report.load(path) for path in reports], as_json=json, as_markdown=markdown, as_html=html)


@commands.command(rich_help_panel=LOOK)
def check(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="report.json, or its folder")],
    gates: Annotated[list[Path], typer.Option("--gate", metavar="FILE", help="Allowed differences; may be repeated")],
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="REPORT", help="The report to compare with")
    ] = None,
    artifacts: Annotated[
        list[Path] | None, typer.Option("--artifact", metavar="DIR", help="Must be what was measured; may be repeated")
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML")] = None,
    sarif: Annotated[Path | None, typer.Option("--sarif", metavar="FILE", help="Write SARIF")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page, the verdict first")] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", metavar="FILE", help="Append Markdown, as to $GITHUB_STEP_SUMMARY")
    ] = None,
    json: Json = False,
) -> None:
    """Exit with 3 if a difference is not allowed, with a line for every bound that is violated"""
    from mcpmq import gate, ui
    from mcpmq.artifact import Artifact
    from mcpmq.report import Report

    found = Report.load(report)
    gate.refuse_changed(found, [Artifact.open(path) for path in artifacts or ()])
    earlier = Report.load(baseline) if baseline else None
    verdicts = [one for file in gates for one in gate.check(found, gate.Gate.load(file), earlier)]
    gate.VerdictFiles(junit, sarif, html, summary).write(verdicts, found, report)
    ui.verdicts(verdicts, as_json=json)
    raise typer.Exit(0 if all(one.holds for one in verdicts) else GATE_FAILED)
