"""Recipes of formats, and measured results that are part of the package."""

from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.recipe_results import collect
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError, RecipeError
from mcpmq.families import family_named
from mcpmq.formats import FORMATS, FormatName, check_tensors, declared_format
from mcpmq.formats.recipes import Measurements, formats_of, recipe_for, recipe_list
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe, builtin_recipes


@pytest.mark.parametrize("name", builtin_recipes())
def test_the_listed_formats_store_a_recipe(name: str, tiny_checkpoint: Path) -> None:
    """A plan of the recipe is accepted by exactly these formats, for a family that they support.

    MLX does not store the vision encoder, whose matrices of 144 columns have no whole groups.
    """
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load(name))
    supporting = []
    for target in FORMATS:
        [family, *_] = declared_format(target).families or (plan.checkpoint.family.name,)
        with suppress(FormatError):
            check_tensors(family_named(family), plan.tensors, target)
            supporting.append(target)

    listed = [one for one in formats_of(Recipe.load(name)) if one != "mlx" or "mlx" in supporting]
    assert supporting == listed


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bits", [4, 8])
def test_bits_have_a_recipe_in_every_format(bits: int, name: FormatName) -> None:
    """The format supports the recipe; AWQ has no 8 bits."""
    if (bits, name) == (8, "awq"):
        with pytest.raises(RecipeError, match="`awq` has no recipe with 8 bits") as caught:
            recipe_for(bits, name)
        assert caught.value.hint.startswith("give --bits 4, or a format of: gguf, onnx, gptq, bnb")
    else:
        recipe = recipe_for(bits, name)
        assert str(bits) in recipe or (bits, recipe) == (4, "language-nf4")
        assert name in formats_of(Recipe.load(recipe))


def test_the_packaged_results_are_those_of_the_benchmarks() -> None:
    """`python -m benchmarks.recipe_results` would write the same file."""
    measured = Measurements.load()

    content = collect()
    assert [row["recipe"] for row in content["recipes"]] == [one.recipe for one in measured.recipes]
    assert [row["mean_kld"] for row in content["recipes"]] == [dict(one.mean_kld) for one in measured.recipes]
    assert content["original_nbytes"] == measured.original_nbytes


def test_a_recipe_without_results_is_listed() -> None:
    """Every built-in recipe has an entry; results are values with half of their interval."""
    entries = {entry["recipe"]: entry for entry in recipe_list()}

    assert list(entries) == builtin_recipes()
    assert entries["full"]["measured"] == []
    assert all(entry["reason"] for entry in entries.values())
    [result] = entries["language-nf4"]["measured"]
    assert result["mean_kld"]["image"]["value"] > result["mean_kld"]["image"]["half_width"] > 0
