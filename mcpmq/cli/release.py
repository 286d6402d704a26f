"""What makes, verifies and compares releases, and finds the mix of schemes that fits one."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcpmq.cli.options import LOOK, STEPS, Context, Device, FitMemory, Json, MaxSize, Out, Source, Threads

if TYPE_CHECKING:  # help must be there at once
    from mcpmq.formats import FormatName
    from mcpmq.mixed_precision import Budget

commands = typer.Typer()
METHODS = "calibrated-int4"  # the recipe that says how to round, where none is named


@commands.command(rich_help_panel=STEPS)
def fit(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="Recipe file to write")],
    format: Annotated[str, typer.Option("--format", "-f", metavar="gguf|onnx", help="What it is for")],
    calibration: Annotated[Path, typer.Option("--calibration", metavar="DIR", help="What the losses are told from")],
    max_size: MaxSize = None,
    fit_memory: FitMemory = None,
    context: Context = 4096,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="The device frees the vision encoder before it reads")
    ] = False,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", metavar="NAME|FILE", help="How to round; its schemes are not used")
    ] = METHODS,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Find the most accurate mix of schemes that fits a size or a memory, and write it as a recipe"""
    from mcpmq import ui
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.dataset import CalibrationSet
    from mcpmq.mixed_precision import fit
    from mcpmq.recipe import Recipe

    budget, name = budget_of(max_size, fit_memory, context, sequential), format_of(format)
    if budget is None:
        raise typer.BadParameter("give --max-size, --fit-memory, or both", param_hint="--max-size")
    cores, methods, samples = threads or os.cpu_count() or 1, Recipe.load(recipe), CalibrationSet.open(calibration)
    fitted = fit(Checkpoint.open(source), methods, name, budget, samples, cores, ui.progress(), device)
    fitted.write(out)
    ui.print_table(fitted.table(), fitted.facts(), as_json=json)


@commands.command(rich_help_panel=STEPS)
def package(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders that mcpmq exported")],
    out: Out,
    source: Annotated[str, typer.Option("--source", metavar="CHECKPOINT", help="What they were made from")],
    measured: Annotated[Path, typer.Option("--report", metavar="REPORT", help="What `mcpmq evaluate` found")],
    max_size: MaxSize = None,
    part_size: Annotated[
        str | None, typer.Option("--part-size", metavar="SIZE", help="Divide larger files, as app stores ask")
    ] = None,
    gates: Annotated[
        list[Path] | None, typer.Option("--gate", metavar="FILE", help="Must hold, as for `check`; may be repeated")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="REPORT", help="The report that gates compare with")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Where the checkpoint does not say it")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", metavar="HUB_ID", help="The original, for the model card")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the release; default: its folder's")] = None,
    json: Json = False,
) -> None:
    """Assemble a release: artifacts, report, model card, licence, and the hash of every file"""
    from mcpmq import ui
    from mcpmq.artifact import Artifact
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.release.package import Wanted, package
    from mcpmq.report import Report

    earlier, sizes = Report.load(baseline) if baseline else None, (_size(max_size), _size(part_size))
    wanted = Wanted(name, licence, base_model, *sizes, tuple(gates or ()), earlier)
    opened = [Artifact.open(path) for path in artifacts]
    made = package(opened, Checkpoint.open(source), Report.load(measured), out, wanted)
    ui.print_table(made.table(), made.record.model_dump(mode="json"), as_json=json)


@commands.command(rich_help_panel=LOOK)
def verify(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A release, or any artifact")],
    load: Annotated[bool, typer.Option("--load/--no-load", help="Load it in its engines, too")] = True,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Check every hash, that files belong together, and that the engines load them"""
    from mcpmq import ui
    from mcpmq.release.verify import verify

    verified = verify(path, threads or os.cpu_count() or 1, load=load, progress=ui.progress())
    ui.print_table(verified.table(), verified.facts(), as_json=json)


@commands.command(rich_help_panel=LOOK)
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="A release or an artifact")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another")],
    json: Json = False,
) -> None:
    """Say what changed from one release to another: files, schemes, sizes, measurements"""
    from mcpmq import ui
    from mcpmq.release.diff import diff

    found = diff(before, after)
    ui.print_table(found.table(), found.facts(), as_json=json)


def budget_of(max_size: str | None, fit_memory: str | None, context: int, sequential: bool = False) -> "Budget | None":
    """What a result must fit, if anything was said."""
    if max_size is None and fit_memory is None:
        return None
    from mcpmq.mixed_precision.budget import Budget

    return Budget(_size(max_size), _size(fit_memory), context, sequential)


def format_of(name: str) -> "FormatName":
    """A format by its name.

    Raises:
        typer.BadParameter: there is none.
    """
    from mcpmq.formats import FORMATS

    found = next((known for known in FORMATS if known == name), None)
    if found is None:
        raise typer.BadParameter(f"`{name}` is not one of: {', '.join(FORMATS)}", param_hint="--format")
    return found


def _size(text: str | None) -> int | None:
    from mcpmq.system.sizes import parse_size

    return parse_size(text) if text else None
