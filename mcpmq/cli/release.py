"""Commands that package, push, verify and compare releases; and the budgets of searches."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcpmq.cli.options import (
    INSPECT_PANEL,
    PIPELINE_PANEL,
    DryRun,
    Json,
    Lora,
    MaxSize,
    Out,
    Private,
    Revision,
    Threads,
    at_revision,
)

if TYPE_CHECKING:  # --help imports no library
    from mcpmq.formats import FormatName
    from mcpmq.mixed_precision import Budget

commands = typer.Typer()


@commands.command(rich_help_panel=PIPELINE_PANEL)
def package(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders that `mcpmq export` wrote")],
    out: Out,
    source: Annotated[str, typer.Option("--source", metavar="CHECKPOINT", help="The original")],
    report: Annotated[Path, typer.Option("--report", metavar="REPORT", help="Report of `mcpmq evaluate`")],
    revision: Revision = None,
    lora: Lora = None,
    max_size: MaxSize = None,
    max_file_size: Annotated[
        str | None, typer.Option("--max-file-size", metavar="SIZE", help="Split larger files, e.g. for an app store")
    ] = None,
    gates: Annotated[
        list[Path] | None, typer.Option("--gate", metavar="FILE", help="Gate that must pass; may be repeated")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="REPORT", help="Report that gates compare with")
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="License, if the checkpoint does not declare one")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", metavar="HUB_ID", help="Hub id of the original for the model card")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the release; default: its folder")] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Push the release to a repository of the hub")
    ] = None,
    private: Private = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Assemble a release: artifacts, report, model card, license, and the SHA-256 of every file"""
    if push is None and (private or dry_run):
        raise typer.BadParameter("needs --push", param_hint="--private" if private else "--dry-run")
    from mcpmq import ui

    ui.start_progress(f"packaging {', '.join(map(str, artifacts))}")
    from mcpmq.artifact import Artifact
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.release.package import ReleaseOptions, package
    from mcpmq.report import Report

    earlier, sizes = (
        Report.load(baseline) if baseline else None,
        (parse_optional_size(max_size), parse_optional_size(max_file_size)),
    )
    options = ReleaseOptions(name, license, base_model, *sizes, tuple(gates or ()), earlier)
    opened = [Artifact.open(path) for path in artifacts]
    original = Checkpoint.open(at_revision(source, revision), ui.progress_bars(), lora or ())
    release = package(opened, original, Report.load(report), out, options)
    if not (push and json):
        ui.print_table(release.to_table(), release.record.model_dump(mode="json"), as_json=json)
    ui.print_release_steps(release.path, has_vision=opened[0].has_vision)
    if push:
        _push_packaged(release.path, push, private, dry_run, json)


@commands.command(name="push", rich_help_panel=PIPELINE_PANEL)
def push_release(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder that `mcpmq package` wrote")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the hub")],
    private: Private = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Push a release to the hub, in one commit; the token is that of $HF_TOKEN"""
    _push(release, repository, private, dry_run, json)


def _push_packaged(folder: Path, repository: str, private: bool, dry_run: bool, json: bool) -> None:
    """Push a new release; the hint of an error has the command that pushes it without packaging it again."""
    from mcpmq.errors import ReleaseError

    try:
        _push(folder, repository, private, dry_run, json)
    except ReleaseError as error:
        error.hint += f"; the release in `{folder}` is complete: push it with `mcpmq push`"
        raise


def _push(folder: Path, repository: str, private: bool, dry_run: bool, json: bool) -> None:
    from mcpmq import ui

    progress = ui.start_progress(f"pushing {folder}")
    from mcpmq.release.push import push
    from mcpmq.release.record import Release

    result = push(Release.open(folder), repository, private=private, dry_run=dry_run, progress=progress)
    ui.print_table(result.to_table(), result.to_dict(), as_json=json)
    ui.print_push_steps(folder, repository, dry_run=dry_run)


@commands.command(rich_help_panel=INSPECT_PANEL)
def verify(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Release or artifact")],
    load: Annotated[bool, typer.Option("--load/--no-load", help="Load the model in its engines")] = True,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Check every SHA-256, the provenance of files, and that the engines load them"""
    from mcpmq import ui

    ui.start_progress(f"verifying {path}")
    from mcpmq.release.verify import verify

    result = verify(path, threads or os.cpu_count() or 1, load=load, progress=ui.progress_bars())
    ui.print_table(result.to_table(), result.to_dict(), as_json=json)


@commands.command(rich_help_panel=INSPECT_PANEL)
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="Release or artifact")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Release or artifact to compare with A")],
    json: Json = False,
) -> None:
    """List the changes between two releases: files, schemes, sizes, measurements"""
    from mcpmq import ui
    from mcpmq.release.diff import diff

    changes = diff(before, after)
    ui.print_table(changes.to_table(), changes.to_dict(), as_json=json)


def make_budget(
    max_size: str | None, max_memory: str | None, context: int, sequential: bool = False
) -> "Budget | None":
    """Return the budget of a search, or None without a limit."""
    if max_size is None and max_memory is None:
        return None
    from mcpmq.mixed_precision.budget import Budget

    return Budget(parse_optional_size(max_size), parse_optional_size(max_memory), context, sequential)


def parse_format(name: str) -> "FormatName":
    """Return the format of a name.

    Raises:
        typer.BadParameter: the name is not a format.
    """
    from mcpmq.formats import FORMATS

    found = next((known for known in FORMATS if known == name), None)
    if found is None:
        raise typer.BadParameter(f"`{name}` is not one of: {', '.join(FORMATS)}", param_hint="--format")
    return found


def parse_optional_size(size: str | None) -> int | None:
    """Return the number of bytes of a size such as `4.6GB`, or None."""
    from mcpmq.system.sizes import parse_size

    return parse_size(size) if size else None
