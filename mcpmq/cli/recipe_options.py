"""The recipes that --recipe, --bits and --format select."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:  # --help imports no library
    from mcpmq.compression_tables import Compression, VocabularyTable
    from mcpmq.formats import FormatName
    from mcpmq.formats.recipes import FormatsByRecipe
    from mcpmq.recipe import Recipe


def print_if_uncalibrated(recipes: "Iterable[Recipe]") -> None:
    """Print a notice for every recipe that does not use the calibration set."""
    from mcpmq import ui

    for recipe in (recipe for recipe in recipes if not recipe.needs_calibration):
        ui.print_notice(f"recipe `{recipe.name}` rounds to nearest: it does not use the calibration set")


def load_recipes(
    name: str | None, bits: int | None, formats: "Sequence[FormatName]", compression: "Compression | None" = None
) -> "FormatsByRecipe":
    """Return every recipe with its formats, and with tables of structured compression.

    Raises:
        typer.BadParameter: both or none of the options are given, or the number of bits is neither 4 nor 8.
    """
    from mcpmq.compression_tables import NO_COMPRESSION
    from mcpmq.formats import recipes
    from mcpmq.recipe import RECIPE_BY_BITS

    if (name is None) == (bits is None):
        raise typer.BadParameter("give either --recipe or --bits", param_hint="--recipe")
    if bits not in (None, *RECIPE_BY_BITS):
        raise typer.BadParameter(f"{bits} is neither 4 nor 8", param_hint="--bits")
    return recipes.with_compression(recipes.load_recipes(name, bits, formats), compression or NO_COMPRESSION)


def parse_compression(
    trim: Sequence[str] | None,
    max_slices: int | None = None,
    max_pixels: int | None = None,
    drop_speech_output: bool = False,
    gguf_audio: str | None = None,
    onnx_shared_embedding: bool = False,
) -> "Compression":
    """Return the tables of `--trim-vocabulary`, `--max-slices` and `--max-pixels`, and the settings of other options.

    Raises:
        typer.BadParameter: a value of `--trim-vocabulary` or `--gguf-audio` is not valid.
    """
    from mcpmq.compression_tables import Compression, ImagesTable

    limits = {"max_slice_nums": max_slices, "max_pixels": max_pixels}
    images = ImagesTable(**limits) if any(value is not None for value in limits.values()) else None
    if gguf_audio not in (None, "glma"):
        raise typer.BadParameter(f"`{gguf_audio}` is not `glma`", param_hint="--gguf-audio")
    return Compression(
        parse_vocabulary(trim or ()),
        images,
        speech_output="drop" if drop_speech_output else None,
        gguf_audio="glma" if gguf_audio else None,
        onnx_embedding="shared" if onnx_shared_embedding else None,
    )


def parse_vocabulary(values: Sequence[str]) -> "VocabularyTable | None":
    """Return the [vocabulary] table of `--trim-vocabulary`: languages, scripts, texts, a number; None without values.

    Raises:
        typer.BadParameter: a value is not one of them.
    """
    from mcpmq.compression_tables import VocabularyTable
    from mcpmq.vocabulary.letters import LANGUAGES, SCRIPTS

    parts = [part for value in values for part in value.split(",") if part]
    if not parts:
        return None
    names = {"languages": LANGUAGES, "scripts": SCRIPTS}
    table: dict[str, Any] = {key: [part for part in parts if part in known] for key, known in names.items()}
    numbers = [part for part in parts if part.isdecimal()]
    others = [part for part in parts if part not in (*LANGUAGES, *SCRIPTS, *numbers)]
    if unknown := [part for part in others if part != "calibration" and "." not in part and "/" not in part]:
        known = f"languages: {', '.join(LANGUAGES)}; scripts: {', '.join(SCRIPTS)}; calibration; or a text file"
        raise typer.BadParameter(f"`{unknown[0]}` is not one of {known}", param_hint="--trim-vocabulary")
    if len(numbers) > 1:
        raise typer.BadParameter(f"{len(numbers)} numbers are given", param_hint="--trim-vocabulary")
    return VocabularyTable(**table, corpus=others, max_tokens=int(numbers[0]) if numbers else None)
