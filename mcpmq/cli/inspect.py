"""Commands that read artifacts, families and reports, and check reports against gates."""

from pathlib import Path
from typing import Annotated

import typer

from mcpmq.cli.options import INSPECT_PANEL, All, Json, Samples, Seed, complete_recipe
from mcpmq.cli.standard_output import keep_exit_code

commands = typer.Typer()
GATE_FAILED = 3  # exit code


@commands.command(rich_help_panel=INSPECT_PANEL)
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH")],
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="CHECKPOINT", help="Count the tokens of a sample set for this model"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the images of a sample set")
    ] = None,
    samples: Samples = None,
    seed: Seed = 0,
    show_all: All = False,
    json: Json = False,
) -> None:
    """Describe a checkpoint, a sample set, an artifact, a report or a release"""
    from mcpmq import ui

    if checkpoint is None and html is None and samples is None:
        ui.inspect_path(path, as_json=json, all_rows=show_all)
        return
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.dataset import ReadOptions, SampleSet

    opened = SampleSet.open(path, ReadOptions(samples, seed, skip_invalid=True))
    original = Checkpoint.open(checkpoint, ui.progress_bars()) if checkpoint else None
    ui.print_set(opened, original, html, as_json=json)
    ui.print_written_files([html])


@commands.command(rich_help_panel=INSPECT_PANEL)
def families(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown")] = False,
    json: Json = False,
) -> None:
    """List the supported models, and the restrictions of every format"""
    from mcpmq import ui

    ui.print_families(as_json=json, as_markdown=markdown)


@commands.command(rich_help_panel=INSPECT_PANEL)
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="Recipe to print", autocompletion=complete_recipe)
    ] = None,
    json: Json = False,
) -> None:
    """List the recipes with their formats, size and measured quality, or print one"""
    from mcpmq import ui

    if name is None:
        ui.print_recipes(as_json=json)
    else:
        ui.print_recipe(name, as_json=json)


@commands.command(rich_help_panel=INSPECT_PANEL)
def report(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT...", help="report.json files, or their folders")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown")] = False,
    html: Annotated[bool, typer.Option("--html", help="Print a self-contained HTML page")] = False,
    show_all: All = False,
    json: Json = False,
) -> None:
    """Show one or more reports in one table, and the change between two"""
    from mcpmq import ui
    from mcpmq.report import Report

    loaded = [Report.load(path) for path in reports]
    ui.print_reports(loaded, as_json=json, as_markdown=markdown, as_html=html, all_rows=show_all)


@commands.command(rich_help_panel=INSPECT_PANEL)
def check(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="report.json, or its folder")],
    gates: Annotated[list[Path], typer.Option("--gate", metavar="FILE", help="File of bounds; may be repeated")],
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="REPORT", help="Report to compare with")
    ] = None,
    artifacts: Annotated[
        list[Path] | None,
        typer.Option("--artifact", metavar="DIR", help="Artifact that must be the measured one; may be repeated"),
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML")] = None,
    sarif: Annotated[Path | None, typer.Option("--sarif", metavar="FILE", help="Write SARIF")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write HTML, verdict first")] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", metavar="FILE", help="Append Markdown, e.g. to $GITHUB_STEP_SUMMARY")
    ] = None,
    json: Json = False,
) -> None:
    """Check a report against the bounds of a gate; exit with 3 if one is violated"""
    from mcpmq import gate, ui
    from mcpmq.artifact import Artifact
    from mcpmq.report import Report

    loaded = Report.load(report)
    gate.check_artifacts(loaded, [Artifact.open(path) for path in artifacts or ()])
    earlier = Report.load(baseline) if baseline else None
    verdicts = [verdict for file in gates for verdict in gate.check(loaded, gate.Gate.load(file), earlier)]
    gate.VerdictFiles(junit, sarif, html, summary).write(verdicts, loaded, report)
    with keep_exit_code():
        ui.print_verdicts(verdicts, as_json=json)
        ui.print_written_files([junit, sarif, html, summary])
    raise typer.Exit(GATE_FAILED if any(verdict.status == "failed" for verdict in verdicts) else 0)
