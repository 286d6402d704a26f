"""The whole way and the steps of it: each command parses, calls one function, and shows what it returned."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcpmq.cli.options import (
    FORMAT_NAMES,
    STEPS,
    Bits,
    Cache,
    Calibration,
    Context,
    Device,
    FitMemory,
    Forecasts,
    Formats,
    Json,
    MaxSize,
    On,
    OptionalCalibration,
    Out,
    RecipeName,
    Source,
    Threads,
)
from mcpmq.cli.release import METHODS, budget_of, format_of

if TYPE_CHECKING:  # help must be there at once
    from mcpmq.recipe import Recipe

commands = typer.Typer()
OF_BITS = {4: "calibrated-int4", 8: "phone-int8"}  # what samples show changes little at 8 bits


@commands.command()
def convert(
    source: Source,
    out: Out,
    formats: Formats,
    calibration: Calibration,
    recipe: RecipeName = None,
    bits: Bits = None,
    max_size: MaxSize = None,
    fit_memory: FitMemory = None,
    context: Context = 4096,
    on: On = None,
    device: Device = None,
    threads: Threads = None,
    cache: Cache = True,
    json: Json = False,
) -> None:
    """The whole way: quantize, write, measure against the original, report; resumes if it was killed"""
    budget = budget_of(max_size, fit_memory, context)
    asked, names = _recipe(recipe or (METHODS if budget and not bits else None), bits), list(map(format_of, formats))
    from mcpmq import ui
    from mcpmq.convert import convert
    from mcpmq.evaluate import Settings

    _tell_of_blind_rounding(asked)
    settings = Settings.of(threads, cache, ui.progress(), device=device)
    ui.report(convert(source, out, asked, names, calibration, on, settings, budget), as_json=json)


@commands.command(rich_help_panel=STEPS)
def plan(
    source: Source,
    recipe: RecipeName = None,
    bits: Bits = None,
    formats: Forecasts = None,
    context: Context = 4096,
    json: Json = False,
) -> None:
    """Show what would be done to every weight, and forecast sizes, memory and time; reads no weights"""
    from mcpmq import ui
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.estimate.forecast import forecast
    from mcpmq.plan import make_plan

    asked, names = _recipe(recipe, bits), [format_of(name) for name in formats or ()]
    made = make_plan(Checkpoint.open(source), asked)
    ui.plan(made, forecast(made, names, context), as_json=json)


@commands.command(rich_help_panel=STEPS)
def quantize(
    source: Source,
    out: Out,
    recipe: RecipeName = None,
    bits: Bits = None,
    calibration: OptionalCalibration = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Round every weight, block by block; export it as often as you like"""
    asked = _recipe(recipe, bits)
    from mcpmq import ui
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.dataset import CalibrationSet
    from mcpmq.plan import make_plan
    from mcpmq.quantize import quantize

    samples = CalibrationSet.open(calibration) if calibration else None
    if samples:
        _tell_of_blind_rounding(asked)
    made = quantize(make_plan(Checkpoint.open(source), asked), out, samples, ui.progress(), device)
    ui.artifact(made.artifact, as_json=json)


@commands.command(rich_help_panel=STEPS)
def export(
    quantized: Annotated[Path, typer.Argument(metavar="QUANTIZED", help="Folder that `mcpmq quantize` wrote")],
    out: Out,
    format: Annotated[str, typer.Option("--format", "-f", metavar="FORMAT", help=f"What to write: {FORMAT_NAMES}")],
    npu: Annotated[
        Path | None,
        typer.Option("--npu", metavar="DIR", help="ONNX vision for NPUs: activations of 16 bits over these images"),
    ] = None,
    json: Json = False,
) -> None:
    """Write a quantized model in the layout that an engine loads"""
    name = format_of(format)
    from mcpmq import ui
    from mcpmq.dataset import CalibrationSet
    from mcpmq.export import export
    from mcpmq.quantized_model import Quantized

    shown = CalibrationSet.open(npu) if npu else None
    ui.artifact(export(Quantized.open(quantized), name, out, ui.progress(), shown), as_json=json)


@commands.command(rich_help_panel=STEPS)
def imatrix(
    source: Source,
    out: Out,
    calibration: Calibration,
    add: Annotated[
        list[Path] | None, typer.Option("--add", metavar="DIR", help="Add what was written for another set; repeatable")
    ] = None,
    mmproj: Annotated[
        Path | None, typer.Option("--mmproj", metavar="FILE", help="GGUF file to match where zeros widened a matrix")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Write the importance of every column, images included, for llama-quantize --imatrix"""
    from mcpmq import ui
    from mcpmq.calibrate.imatrix import imatrix
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.dataset import CalibrationSet

    samples = CalibrationSet.open(calibration)
    made = imatrix(Checkpoint.open(source), samples, out, add or [], mmproj, ui.progress(), device)
    for note in made.manifest.notes:
        ui.notice(note)
    ui.artifact(made, as_json=json)


@commands.command(rich_help_panel=STEPS)
def evaluate(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders that mcpmq wrote")],
    against: Annotated[str, typer.Option("--against", metavar="CHECKPOINT", help="The original")],
    on: Annotated[Path, typer.Option("--on", metavar="DIR", help="Images and questions to measure on")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where report.json goes; default: the artifact's parent")
    ] = None,
    unquantized: Annotated[
        list[Path] | None,
        typer.Option("--unquantized", metavar="ARTIFACT", help="Of the recipe `full`, to tell the engine's difference"),
    ] = None,
    shuffle_images: Annotated[
        bool, typer.Option("--shuffle-images", help="Give every question another's image")
    ] = False,
    engine_cuts: Annotated[
        bool, typer.Option("--engine-cuts", help="Let llama.cpp cut and resize images itself")
    ] = False,
    by_component: Annotated[
        bool, typer.Option("--by-component", help="Of a quantized artifact, what each component costs alone")
    ] = False,
    threads: Threads = None,
    cache: Cache = True,
    json: Json = False,
) -> None:
    """Measure artifacts in their own engines against the original, on the same pixels and tokens"""
    if by_component:
        if len(artifacts) > 1 or shuffle_images or engine_cuts:
            raise typer.BadParameter("goes with one artifact and no control", param_hint="--by-component")
        _split(artifacts[0], against, on, out, threads, cache, json)
        return
    from mcpmq import ui
    from mcpmq.artifact import Artifact
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.dataset import CalibrationSet
    from mcpmq.evaluate import Settings
    from mcpmq.report import compare, write_report
    from mcpmq.report.model_cards import add_figures

    settings = Settings.of(threads, cache, ui.progress(), shuffle_images, engine_cuts)
    opened, full = ([Artifact.open(path) for path in paths] for paths in (artifacts, unquantized or ()))
    report = compare(Checkpoint.open(against), opened, CalibrationSet.open(on), settings, unquantized=full)
    write_report(report, out or artifacts[0].absolute().parent)
    add_figures(report, opened)
    ui.report(report, as_json=json)


def _split(
    artifact: Path, against: str, on: Path, out: Path | None, threads: int | None, cache: bool, json: bool
) -> None:
    from mcpmq import ui
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.dataset import CalibrationSet
    from mcpmq.evaluate import Settings
    from mcpmq.quantized_model import Quantized
    from mcpmq.report.ablation import split

    settings = Settings.of(threads, cache, ui.progress())
    found = split(Checkpoint.open(against), Quantized.open(artifact), CalibrationSet.open(on), settings)
    found.write(out or artifact.absolute().parent)
    ui.split(found, as_json=json)


def _tell_of_blind_rounding(recipe: "Recipe") -> None:
    if not recipe.looks:
        from mcpmq import ui

        ui.notice(f"recipe `{recipe.name}` rounds to the nearest: no calibration sample decides a weight")


def _recipe(name: str | None, bits: int | None) -> "Recipe":
    from mcpmq.recipe import Recipe

    if (name is None) == (bits is None):
        raise typer.BadParameter("give either --recipe or --bits", param_hint="--recipe")
    if bits not in (None, *OF_BITS):
        raise typer.BadParameter(f"{bits} is neither 4 nor 8", param_hint="--bits")
    return Recipe.load(OF_BITS[bits] if bits else name or "")
