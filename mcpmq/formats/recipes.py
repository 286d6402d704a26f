"""Built-in recipes: the formats that can store them, the recipe of a number of bits, and their measured results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mcpmq.compression_tables import Compression
from mcpmq.errors import RecipeError
from mcpmq.formats import FORMATS, FormatName, declared_format
from mcpmq.formats.format import FLOAT_SCHEMES
from mcpmq.recipe import BUILTIN_DIRECTORY, RECIPE_BY_BITS, Recipe, builtin_recipes, recipe_reason
from mcpmq.scheme import requested_schemes
from mcpmq.system.table import Row, Table

MEASURED_FILE = BUILTIN_DIRECTORY / "measured.json"  # of benchmarks/results, by `make readme`
NOT_MEASURED = "not measured"
LANGUAGE = "language"  # the component that formats with one scheme quantize

FormatsByRecipe: TypeAlias = list[tuple[Recipe, list[FormatName]]]


@dataclass(frozen=True, slots=True)
class MeasuredRecipe:
    """Size and mean KLD of one recipe in one format, on the reference checkpoint."""

    recipe: str
    format: str
    nbytes: int
    bits_per_weight: float
    mean_kld: Mapping[str, tuple[float, float]]  # nats, and half of the 95 % interval, by group of samples


@dataclass(frozen=True, slots=True)
class Measurements:
    """All measured recipes, and their origin."""

    checkpoint: str
    eval_set: str
    samples: int
    original_nbytes: int
    recipes: tuple[MeasuredRecipe, ...]
    searched: tuple[MeasuredRecipe, ...]  # by `mcpmq search`, for several sizes

    @classmethod
    def load(cls) -> "Measurements":
        """Read the results that are part of the package."""
        content = json.loads(MEASURED_FILE.read_text(encoding="utf-8"))
        recipes, searched = (
            tuple(MeasuredRecipe(**row) for row in content.pop(name)) for name in ("recipes", "searched")
        )
        return cls(**content, recipes=recipes, searched=searched)

    def better_search(self, recipe: str, name: str) -> tuple[MeasuredRecipe, MeasuredRecipe] | None:
        """Return a recipe and the most accurate searched one of at most its size, if its interval of KLD is lower."""
        fixed = next((one for one in self.recipes if (one.recipe, one.format) == (recipe, name)), None)
        if fixed is None:
            return None
        smaller = [one for one in self.searched if one.format == name and one.nbytes <= fixed.nbytes]
        best = min(smaller, key=lambda one: one.mean_kld["image"][0], default=None)
        if best is None or sum(best.mean_kld["image"]) >= fixed.mean_kld["image"][0] - fixed.mean_kld["image"][1]:
            return None
        return fixed, best


def recipe_for(bits: int, name: FormatName) -> str:
    """Return the name of the recommended recipe of a number of bits for a format.

    Raises:
        RecipeError: the format has none.
    """
    recipes = declared_format(name).recipes
    if bits not in recipes:
        widths = " or ".join(map(str, recipes))
        supporting = [other for other in FORMATS if bits in declared_format(other).recipes]
        hint = f"give --bits {widths}" + (f", or a format of: {', '.join(supporting)}" if supporting else "")
        raise RecipeError(f"`{name}` has no recipe with {bits} bits", hint)
    return recipes[bits]


def load_recipes(recipe: Recipe | str | None, bits: int | None, formats: Sequence[FormatName]) -> FormatsByRecipe:
    """Return every recipe with its formats: one for all formats, or that of `bits` for each.

    Raises:
        RecipeError: both or none of `recipe` and `bits` are given, the recipe is not valid, or a format has no recipe
            with this number of bits.
    """
    if (recipe is None) == (bits is None):
        raise RecipeError("both or none of `recipe` and `bits` are given", "give one of them")
    if bits is not None and bits not in RECIPE_BY_BITS:
        raise RecipeError(f"{bits} bits have no recipe", "give 4 or 8, or a recipe")
    if bits is None or not formats:
        loaded = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe or RECIPE_BY_BITS[bits or 4])
        return [(loaded, list(dict.fromkeys(formats)))]
    names: dict[str, list[FormatName]] = {}
    for name in dict.fromkeys(formats):
        names.setdefault(recipe_for(bits, name), []).append(name)
    return [(Recipe.load(recipe_name), several) for recipe_name, several in names.items()]


def with_compression(recipes: FormatsByRecipe, compression: Compression) -> FormatsByRecipe:
    """Return the recipes with the tables that are given instead of their own."""
    given = compression.given
    return [(recipe.model_copy(update=given), names) for recipe, names in recipes] if given else recipes


def formats_of(recipe: Recipe) -> list[FormatName]:
    """Return the formats that support the schemes of a recipe; shapes of a checkpoint can exclude more."""
    return [name for name in FORMATS if _supports(name, recipe)]


def _supports(name: FormatName, recipe: Recipe) -> bool:
    target = declared_format(name)
    schemes = [(glob, str(scheme)) for glob, request in recipe.weights.items() for scheme in requested_schemes(request)]
    if any(scheme not in target.schemes for _, scheme in schemes):
        return False
    if any(activation not in target.activations for activation in recipe.activations.values()):
        return False
    integers = [(glob, scheme) for glob, scheme in schemes if scheme not in FLOAT_SCHEMES]
    only_language = all(glob.partition(".")[0] == LANGUAGE for glob, _ in integers)
    return not target.single_scheme or (only_language and len({scheme for _, scheme in integers}) == 1)


def recipe_list() -> list[dict[str, Any]]:
    """Return one entry per built-in recipe: its reason, method, formats, need of calibration, and measured results."""
    measured = Measurements.load()
    entries = []
    for name in builtin_recipes():
        recipe = Recipe.load(name)
        results = [
            {"format": one.format, "nbytes": one.nbytes, "bits_per_weight": one.bits_per_weight}
            | {"mean_kld": {group: dict(zip(("value", "half_width"), kld, strict=True)) for group, kld in kld_of(one)}}
            for one in measured.recipes
            if one.recipe == name
        ]
        words = {"recipe": name, "reason": recipe_reason(name), "method": recipe.method, "smooth": recipe.smooth}
        entry = {**words, "formats": formats_of(recipe)}
        entries.append({**entry, "needs_calibration": recipe.needs_calibration, "measured": results})
    return entries


def kld_of(one: MeasuredRecipe) -> list[tuple[str, tuple[float, float]]]:
    """Return the mean KLD of a measured recipe by group, as value and half interval."""
    return [(group, (value, half)) for group, (value, half) in one.mean_kld.items()]


def recipes_table() -> Table:
    """Return a row for every built-in recipe, with a detail row for every format that it was measured in."""
    measured, rows = Measurements.load(), list[Row]()
    for entry in recipe_list():
        calibration = "yes" if entry["needs_calibration"] else "no"
        results = [one for one in measured.recipes if one.recipe == entry["recipe"]]
        cells = [_method(entry), calibration, "", "", "" if results else NOT_MEASURED, ""]
        rows.append((entry["recipe"], cells))
        rows += [(f"  {one.format}", ["", "", *_result_cells(one, measured)]) for one in results]
        if others := [name for name in entry["formats"] if name not in {one.format for one in results}]:
            rows.append((f"  {', '.join(others)}", [""] * len(cells)))
    columns = ["method", "calibration", "size, %", "bits", "KLD, images", "KLD, text"]
    notes = [
        f"measured on {measured.checkpoint}, {measured.samples} samples of {measured.eval_set}; other models differ",
        "size: % of the original; bits: per weight; KLD: mean, in nats, ±: half of the 95 % interval",
        "below a recipe: the formats that support it",
        *_bits_notes(),
        "`mcpmq recipes NAME` shows one; a changed copy in a .toml file is a recipe, too",
    ]
    return Table("Recipes", columns, rows, notes)


def reason_notes() -> list[str]:
    """Return a line for every built-in recipe with its reason."""
    return [f"{name}: {recipe_reason(name)}" for name in builtin_recipes()]


def _method(entry: Mapping[str, Any]) -> str:
    return str(entry["method"]) + ("" if entry["smooth"] == "none" else f", {entry['smooth']}")


def _result_cells(one: MeasuredRecipe, measured: Measurements) -> Sequence[str]:
    share = f"{one.nbytes / measured.original_nbytes * 100:.1f}"
    kld = {group: f"{value:.4f} ±{half:.4f}" for group, (value, half) in one.mean_kld.items()}
    return [share, f"{one.bits_per_weight:.2f}", kld["image"], kld["text"]]


def _bits_notes() -> list[str]:
    notes = []
    for bits in sorted({bits for name in FORMATS for bits in declared_format(name).recipes}):
        formats: dict[str, list[str]] = {}
        for name in FORMATS:
            if bits in (recipes := declared_format(name).recipes):
                formats.setdefault(recipes[bits], []).append(name)
        listed = [f"{recipe} ({', '.join(names)})" for recipe, names in formats.items()]
        notes.append(f"--bits {bits}: {'; '.join(listed)}")
    return notes
