"""The command `search`: the recipe of least estimated loss under a size or memory limit."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcpmq.cli.options import (
    DEFAULT_SEARCH_RECIPE,
    PIPELINE_PANEL,
    Context,
    Device,
    Json,
    Lora,
    MaxMemory,
    MaxSize,
    Revision,
    Samples,
    Seed,
    Source,
    Threads,
    at_revision,
    checkpoint_words,
    complete_format,
    complete_recipe,
    set_words,
)
from mcpmq.cli.recipe_options import parse_vocabulary
from mcpmq.cli.release import make_budget, parse_format
from mcpmq.cli.sample_sets import open_set

if TYPE_CHECKING:  # --help imports no library
    from mcpmq.compression_tables import ImagesTable
    from mcpmq.formats import FormatName
    from mcpmq.mixed_precision import Budget, SearchResult, Structure

commands = typer.Typer()
SearchCalibration = Annotated[
    Path | None, typer.Option("--calibration", metavar="SET", help="Calibration set: images and prompts")
]
Imatrix = Annotated[
    Path | None,
    typer.Option("--imatrix", metavar="DIR", help="Result of `mcpmq imatrix`, instead of a calibration set"),
]
Sequential = Annotated[
    bool, typer.Option("--sequential", help="The device frees the vision encoder before the language model loads")
]
RemoveLayers = Annotated[
    int, typer.Option("--remove-layers", metavar="N", min=0, help="Remove up to N layers, with --calibration")
]
ImageLimits = Annotated[
    list[str] | None,
    typer.Option(
        "--image-limits",
        metavar="KEY=N,N,...",
        help="Limit images to one of these numbers, e.g. max_slice_nums=6,4,2, with --max-memory; may be repeated",
    ),
]
ImageSizes = Annotated[
    list[str] | None,
    typer.Option(
        "--image-size",
        metavar="WIDTHxHEIGHT",
        help="Size in pixels of an image in the context, for --image-limits; repeated: one of several images",
    ),
]
Vocabularies = Annotated[
    list[str] | None,
    typer.Option(
        "--vocabularies",
        metavar="KEPT",
        help="Trim the vocabulary as --trim-vocabulary KEPT, with --calibration; repeated: one of several choices",
    ),
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the Pareto front and all weights")
]
SearchRecipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        metavar="NAME|FILE",
        help="Recipe for method, smoothing and structured compression, not schemes",
        autocompletion=complete_recipe,
    ),
]


@commands.command(rich_help_panel=PIPELINE_PANEL)
def search(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="Recipe file to write")],
    format: Annotated[
        str,
        typer.Option(
            "--format", "-f", metavar="gguf|onnx", help="Format of the artifact", autocompletion=complete_format
        ),
    ],
    calibration: SearchCalibration = None,
    imatrix: Imatrix = None,
    revision: Revision = None,
    lora: Lora = None,
    max_size: MaxSize = None,
    max_memory: MaxMemory = None,
    context: Context = 4096,
    sequential: Sequential = False,
    remove_layers: RemoveLayers = 0,
    image_limits: ImageLimits = None,
    image_size: ImageSizes = None,
    vocabularies: Vocabularies = None,
    recipe: SearchRecipe = DEFAULT_SEARCH_RECIPE,
    samples: Samples = None,
    seed: Seed = 0,
    device: Device = None,
    threads: Threads = None,
    html: Html = None,
    json: Json = False,
) -> None:
    """Search the most accurate mixed precision under a size or memory limit, and write its recipe"""
    from mcpmq import ui

    source = at_revision(source, revision)
    ui.start_progress(f"searching a recipe for {source}")
    budget, name = make_budget(max_size, max_memory, context, sequential), parse_format(format)
    if budget is None:
        raise typer.BadParameter("give --max-size, --max-memory, or both", param_hint="--max-size")
    if (calibration is None) == (imatrix is None):
        raise typer.BadParameter("give --calibration or --imatrix", param_hint="--calibration")
    structure = parse_structure(remove_layers, image_limits or (), image_size or (), vocabularies or ())
    if structure and imatrix:
        raise typer.BadParameter(
            "the loss of structured compression is measured: give --calibration", param_hint="--imatrix"
        )
    given = (calibration, samples, seed, imatrix, threads, device, structure, html)
    result = _search(source, lora, out, recipe, name, budget, *given)
    ui.print_table(result.to_table(), result.to_dict(), as_json=json)
    if not json:
        ui.print_table(result.front_table(), None)
    ui.print_search_steps(out, checkpoint_words(source, lora), name, set_words(calibration, samples, seed))
    ui.print_written_files([html])


def parse_structure(
    max_removed: int, image_limits: Sequence[str], image_sizes: Sequence[str], vocabularies: Sequence[str]
) -> "Structure":
    """Return the structured compression that a search may choose.

    Raises:
        typer.BadParameter: a value is not valid.
    """
    from mcpmq.mixed_precision.structure import Structure

    limits = [table for value in image_limits for table in _parse_limits(value)]
    sizes = tuple(map(_parse_image_size, image_sizes))
    tables = [table for value in vocabularies if (table := parse_vocabulary([value]))]
    return Structure(max_removed, tuple(dict.fromkeys(limits)), sizes, tuple(tables))


def _parse_limits(value: str) -> list["ImagesTable"]:
    from mcpmq.compression_tables import ImagesTable

    key, separator, numbers = value.partition("=")
    if key not in ImagesTable.model_fields or not separator:
        known = ", ".join(ImagesTable.model_fields)
        raise typer.BadParameter(f"`{value}` is not KEY=N,N,... with one of {known}", param_hint="--image-limits")
    try:
        return [ImagesTable.model_validate({key: int(number)}) for number in numbers.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"`{value}` is not a list of valid numbers", param_hint="--image-limits") from error


def _parse_image_size(value: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value)
    if found is None:
        raise typer.BadParameter(f"`{value}` is not WIDTHxHEIGHT, e.g. 1920x1080", param_hint="--image-size")
    return int(found[1]), int(found[2])


def _search(
    source: str,
    lora: list[Path] | None,
    out: Path,
    recipe: str,
    name: "FormatName",
    budget: "Budget",
    calibration: Path | None,
    num_samples: int | None,
    seed: int,
    imatrix: Path | None,
    threads: int | None,
    device: str | None,
    structure: "Structure",
    html: Path | None,
) -> "SearchResult":
    """Search with one of the two kinds of statistics, and write the recipe and its page."""
    from mcpmq import ui
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.compression import compress
    from mcpmq.mixed_precision import recipe_file, search_recipe, search_with_imatrix
    from mcpmq.recipe import Recipe
    from mcpmq.ui.search_page import check_search_page, write_search_page

    base, progress = Recipe.load(recipe), ui.progress_bars()
    original = Checkpoint.open(source, progress, lora or ())
    samples = open_set(calibration, num_samples, seed) if calibration else None
    statistics = {samples.path: "calibration set"} if samples else {}
    inputs = original.folders | statistics | ({imatrix: "importance matrix"} if imatrix else {})
    check_search_page(html, inputs)
    with recipe_file(out, inputs):
        if samples:
            cores = threads or os.cpu_count() or 1
            with compress(original, base, samples, progress) as view:
                result = search_recipe(view, base, name, budget, samples, cores, progress, device, structure)
        else:
            assert imatrix is not None
            result = search_with_imatrix(original, base, name, budget, imatrix, progress)
        result.write(out)
        write_search_page(result, html)
    return result
