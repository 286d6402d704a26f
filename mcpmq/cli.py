"""The command line: parse, call one function, show what it returned; the only file that knows options."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcpmq.errors import McpmqError

if TYPE_CHECKING:  # help must be there at once
    from mcpmq.formats import FormatName
    from mcpmq.recipe import Recipe

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
STEPS, LOOK = "Step by step", "Look and judge"

Source = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder of a Hugging Face checkpoint, or a hub id")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not hold anything else")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", "-r", metavar="NAME|FILE", help="A recipe, or its TOML file")
]
Bits = Annotated[
    int | None, typer.Option("--bits", metavar="4|8", help="Short for the recipe phone-int4 or phone-int8")
]
Formats = Annotated[
    list[str], typer.Option("--format", "-f", metavar="gguf|onnx", help="What to write; may be repeated")
]
Format = Annotated[str | None, typer.Option("--format", "-f", metavar="gguf|onnx", help="Check that this can hold it")]
Calibration = Annotated[Path, typer.Option("--calibration", metavar="DIR", help="Images and questions to calibrate on")]
OptionalCalibration = Annotated[
    Path | None, typer.Option("--calibration", metavar="DIR", help="Images and questions to calibrate on")
]
On = Annotated[
    Path | None,
    typer.Option("--on", metavar="DIR", help="Set to measure on; without it a fifth of the calibration set"),
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Of the engines; default: all cores")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Reuse a measurement of the same original")]


def _version(wanted: bool) -> None:
    if wanted:
        from mcpmq import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def mcpmq(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version", callback=_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notices")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More notices, and tracebacks of errors")] = False,
) -> None:
    """Make multimodal language models small, and say what it cost."""
    from mcpmq import show

    show.set_verbosity(quiet=quiet, verbose=verbose)


@app.command()
def convert(
    source: Source,
    out: Out,
    formats: Formats,
    calibration: Calibration,
    recipe: RecipeName = None,
    bits: Bits = None,
    on: On = None,
    threads: Threads = None,
    cache: Cache = True,
    json: Json = False,
) -> None:
    """The whole way: quantize, write, measure against the original, report; resumes if it was killed"""
    asked, names = _recipe(recipe, bits), [_format(name) for name in formats]
    from mcpmq import show
    from mcpmq.convert import convert
    from mcpmq.evaluate import Settings

    _tell_of_blind_rounding(asked)
    settings = Settings.of(threads, cache, show.progress())
    show.report(convert(source, out, asked, names, calibration, on, settings), as_json=json)


@app.command(rich_help_panel=STEPS)
def plan(
    source: Source, recipe: RecipeName = None, bits: Bits = None, format: Format = None, json: Json = False
) -> None:
    """Show what would be done to every weight, and the size it would have; reads no weights"""
    from mcpmq import show
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.formats import check
    from mcpmq.plan import make_plan

    made = make_plan(Checkpoint.open(source), _recipe(recipe, bits))
    if format is not None:
        check(made, _format(format))
    show.plan(made, as_json=json)


@app.command(rich_help_panel=STEPS)
def quantize(
    source: Source,
    out: Out,
    recipe: RecipeName = None,
    bits: Bits = None,
    calibration: OptionalCalibration = None,
    json: Json = False,
) -> None:
    """Round every weight, block by block; export it as often as you like"""
    asked = _recipe(recipe, bits)
    from mcpmq import show
    from mcpmq.calibration import CalibrationSet
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.plan import make_plan
    from mcpmq.quantize import quantize

    samples = CalibrationSet.open(calibration) if calibration else None
    if samples:
        _tell_of_blind_rounding(asked)
    made = quantize(make_plan(Checkpoint.open(source), asked), out, samples, show.progress())
    show.artifact(made.artifact, as_json=json)


@app.command(rich_help_panel=STEPS)
def export(
    quantized: Annotated[Path, typer.Argument(metavar="QUANTIZED", help="Folder that `mcpmq quantize` wrote")],
    out: Out,
    format: Annotated[str, typer.Option("--format", "-f", metavar="gguf|onnx", help="What to write")],
    json: Json = False,
) -> None:
    """Write a quantized model in the layout that an engine loads"""
    name = _format(format)
    from mcpmq import show
    from mcpmq.export import export
    from mcpmq.quantized import Quantized

    show.artifact(export(Quantized.open(quantized), name, out, show.progress()), as_json=json)


@app.command(rich_help_panel=STEPS)
def evaluate(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders that mcpmq wrote")],
    against: Annotated[str, typer.Option("--against", metavar="CHECKPOINT", help="The original")],
    on: Annotated[Path, typer.Option("--on", metavar="DIR", help="Images and questions to measure on")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where report.json goes; default: the artifact's parent")
    ] = None,
    shuffle_images: Annotated[
        bool, typer.Option("--shuffle-images", help="Give every question another's image")
    ] = False,
    engine_cuts: Annotated[
        bool, typer.Option("--engine-cuts", help="Let llama.cpp cut and resize images itself")
    ] = False,
    threads: Threads = None,
    cache: Cache = True,
    json: Json = False,
) -> None:
    """Measure artifacts in their own engines against the original, on the same pixels and tokens"""
    from mcpmq import show
    from mcpmq.artifact import Artifact
    from mcpmq.calibration import CalibrationSet
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.evaluate import Settings
    from mcpmq.report import compare

    settings = Settings.of(threads, cache, show.progress(), shuffle_images, engine_cuts)
    opened = [Artifact.open(path) for path in artifacts]
    report = compare(Checkpoint.open(against), opened, CalibrationSet.open(on), settings)
    report.write(out or artifacts[0].absolute().parent)
    show.report(report, as_json=json)


@app.command(rich_help_panel=LOOK)
def inspect(path: Annotated[Path, typer.Argument(metavar="PATH")], json: Json = False) -> None:
    """Say what a path is: a checkpoint, a set of images and questions, an artifact, a report"""
    from mcpmq import show

    show.path(path, as_json=json)


@app.command(rich_help_panel=LOOK)
def families(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, as for a README")] = False,
    json: Json = False,
) -> None:
    """List the models that can be converted, and what is refused or differs in which format"""
    from mcpmq import show

    show.families(as_json=json, as_markdown=markdown)


@app.command(rich_help_panel=LOOK)
def report(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT...", help="report.json files, or their folders")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, as for a pull request")] = False,
    json: Json = False,
) -> None:
    """Show one or many reports in one table"""
    from mcpmq import show
    from mcpmq.report import Report

    show.report(Report.merged([Report.load(path) for path in reports]), as_json=json, as_markdown=markdown)


def _tell_of_blind_rounding(recipe: "Recipe") -> None:
    if recipe.round == "rtn":
        from mcpmq import show

        show.notice(f"recipe `{recipe.name}` rounds to the nearest: no calibration sample decides a weight")


def _recipe(name: str | None, bits: int | None) -> "Recipe":
    from mcpmq.recipe import Recipe

    if (name is None) == (bits is None):
        raise typer.BadParameter("give either --recipe or --bits", param_hint="--recipe")
    if bits not in (None, 4, 8):
        raise typer.BadParameter(f"{bits} is neither 4 nor 8", param_hint="--bits")
    return Recipe.load(name or f"phone-int{bits}")


def _format(name: str) -> "FormatName":
    from mcpmq.formats import FORMATS

    found = next((known for known in FORMATS if known == name), None)
    if found is None:
        raise typer.BadParameter(f"`{name}` is not one of: {', '.join(FORMATS)}", param_hint="--format")
    return found


def main() -> None:
    """Run the command line; an error for the user is dressed, a bug keeps its traceback."""
    # Threads that spin while they wait make everything eight times slower beside any other busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app(prog_name="mcpmq")
    except McpmqError as error:
        from mcpmq import show

        show.error(error)
        raise SystemExit(1) from None
