"""The recipes that --recipe, --bits and --format select."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:  # --help imports no library
    from mcpmq.formats import FormatName
    from mcpmq.formats.recipes import FormatsByRecipe
    from mcpmq.recipe import Recipe, VocabularyTable


def print_if_uncalibrated(recipes: "Iterable[Recipe]") -> None:
    """Print a notice for every recipe that does not use the calibration set."""
    from mcpmq import ui

    for recipe in (recipe for recipe in recipes if not recipe.needs_calibration):
        ui.print_notice(f"recipe `{recipe.name}` rounds to nearest: it does not use the calibration set")


def load_recipes(
    name: str | None, bits: int | None, formats: "Sequence[FormatName]", trim: Sequence[str] | None = None
) -> "FormatsByRecipe":
    """Return every recipe with its formats, and with the vocabulary that `trim` selects.

    Raises:
        typer.BadParameter: both or none of the options are given, or the number of bits is neither 4 nor 8.
    """
    from mcpmq.formats import recipes
    from mcpmq.recipe import RECIPE_BY_BITS

    if (name is None) == (bits is None):
        raise typer.BadParameter("give either --recipe or --bits", param_hint="--recipe")
    if bits not in (None, *RECIPE_BY_BITS):
        raise typer.BadParameter(f"{bits} is neither 4 nor 8", param_hint="--bits")
    return recipes.with_vocabulary(recipes.load_recipes(name, bits, formats), parse_vocabulary(trim or ()))


def parse_vocabulary(values: Sequence[str]) -> "VocabularyTable | None":
    """Return the [vocabulary] table of `--trim-vocabulary`: languages, scripts, texts, a number; None without values.

    Raises:
        typer.BadParameter: a value is not one of them.
    """
    from mcpmq.recipe import VocabularyTable
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
