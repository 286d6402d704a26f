"""The recipes that --recipe, --bits and --format select."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:  # --help imports no library
    from mcpmq.formats import FormatName
    from mcpmq.formats.recipes import FormatsByRecipe
    from mcpmq.recipe import Recipe


def print_if_uncalibrated(recipes: "Iterable[Recipe]") -> None:
    """Print a notice for every recipe that does not use the calibration set."""
    from mcpmq import ui

    for recipe in (recipe for recipe in recipes if not recipe.needs_calibration):
        ui.print_notice(f"recipe `{recipe.name}` rounds to nearest: it does not use the calibration set")


def load_recipes(name: str | None, bits: int | None, formats: "Sequence[FormatName]") -> "FormatsByRecipe":
    """Return every recipe with its formats.

    Raises:
        typer.BadParameter: both or none of the options are given, or the number of bits is neither 4 nor 8.
    """
    from mcpmq.formats import recipes
    from mcpmq.recipe import RECIPE_BY_BITS

    if (name is None) == (bits is None):
        raise typer.BadParameter("give either --recipe or --bits", param_hint="--recipe")
    if bits not in (None, *RECIPE_BY_BITS):
        raise typer.BadParameter(f"{bits} is neither 4 nor 8", param_hint="--bits")
    return recipes.load_recipes(name, bits, formats)
