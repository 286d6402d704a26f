"""Recipes and schemes: what is written is what is read, and what is wrong is named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmq.errors import RecipeError
from mcpmq.recipe import GGML_BLOCKS, GROUP_SIZES, IntegerScheme, Recipe, builtin_recipes, parse_scheme

INTEGER = st.builds(IntegerScheme, st.sampled_from([4, 8]), st.sampled_from([None, *GROUP_SIZES]), st.booleans())


@given(INTEGER)
def test_integer_schemes_are_read_as_they_are_written(scheme: IntegerScheme) -> None:
    """parse(str(scheme)) is the scheme."""
    assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize("name", [*GGML_BLOCKS, "f32", "f16", "bf16"])
def test_named_schemes_are_read_as_they_are_written(name: str) -> None:
    """A ggml type or a float type keeps its name."""
    assert str(parse_scheme(name)) == name


def test_keep_is_no_scheme() -> None:
    """`keep` leaves a weight as it is."""
    assert parse_scheme("keep") is None


@pytest.mark.parametrize("text", ["int4", "int5-g32", "int4-g31", "int4-g0", "q4_K", "int4-g32-sym", "", "int4-gx"])
def test_what_is_no_scheme_is_refused_with_the_alternatives(text: str) -> None:
    """The error quotes the text and the hint lists what could be written."""
    with pytest.raises(RecipeError, match="is not a scheme") as caught:
        parse_scheme(text)

    assert "q4_k" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("int4-g32", 64, 32 + 2 * 2),
        ("int4-g32", 33, 17 + 2 * 2),
        ("int4-g32-asym", 64, 32 + 2 * 2 + 1),
        ("int8-row", 100, 100 + 2),
        ("q4_k", 512, 288),
        ("q8_0", 33, 68),
        ("f16", 7, 14),
    ],
)
def test_bytes_of_a_row(text: str, columns: int, expected: int) -> None:
    """Codes, scales and zero points are all counted, ragged groups as whole ones."""
    scheme = parse_scheme(text)

    assert scheme is not None
    assert scheme.row_nbytes(columns) == expected


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_built_in_recipe_is_valid_and_bears_its_file_name(name: str) -> None:
    """The recipes that come with mcpmq load."""
    assert Recipe.load(name).name == name


def test_a_recipe_survives_its_own_writing(tmp_path: Path) -> None:
    """`written()` holds plain values that make the same recipe again."""
    recipe = Recipe.load("quality-int4")
    weighing = Recipe.model_validate({**recipe.written(), "round": "gptq", "modalities": {"vision": 0.25, "text": 1}})

    assert Recipe.model_validate(recipe.written()) == recipe
    assert Recipe.model_validate(weighing.written()) == weighing
    assert weighing.written()["modalities"] == {"vision": 0.25, "text": 1.0, "answer": 1.0}
    rounding = Recipe.model_validate({**recipe.written(), "activations": {"vision.*": "u8"}})
    assert Recipe.model_validate(rounding.written()) == rounding
    assert rounding.looks
    assert not recipe.looks


@pytest.mark.parametrize(
    ("rounding", "smooth", "looks", "chooses"),
    [
        ("rtn", "none", False, False),
        ("importance", "none", True, False),
        ("gptq", "none", True, False),
        ("best", "none", True, True),
        ("rtn", "awq", True, True),
        ("gptq", "smoothquant", True, True),
    ],
)
def test_a_recipe_knows_what_samples_decide(rounding: Any, smooth: Any, looks: bool, chooses: bool) -> None:
    """Nothing, how a block is rounded, or which of several ways is taken."""
    recipe = Recipe(name="x", round=rounding, smooth=smooth, weights={})

    assert (recipe.looks, recipe.chooses) == (looks, chooses)
    assert Recipe.model_validate(recipe.written()) == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"\nweights = 3', "weights"),
        ('name = "x"\n[weights]\n"*" = 4', "weights"),
        ('name = "x"\n[weights]\n"*" = "int3"', "int3"),
        ('name = "x"\nround = "worst"\n[weights]', "round"),
        ('name = "x"\ncolour = "red"\n[weights]', "colour"),
        ('name = "x"\nround = "gptq"\n[weights]\n[modalities]\nvision = -1', "vision"),
        ('name = "x"\nround = "gptq"\n[weights]\n[modalities]\nvision = inf', "vision"),
        ('name = "x"\nround = "gptq"\n[weights]\n[modalities]\naudio = 1', "audio"),
        ('name = "x"\nround = "gptq"\n[weights]\n[modalities]\nvision = 0\ntext = 0\nanswer = 0', "more than 0"),
        ('name = "x"\nround = "rtn"\n[weights]\n[modalities]\nvision = 0.5', "sees nothing"),
        ('name = "x"\n[weights]\n[activations]\n"vision.*" = "s8"', "vision"),
        ("name = ", "TOML"),
        ("", "name"),
    ],
)
def test_a_broken_recipe_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    """The error names the file's offending key or value."""
    path = tmp_path / "mine.toml"
    path.write_text(text)

    with pytest.raises(RecipeError, match=said):
        Recipe.load(str(path))


def test_an_unknown_recipe_lists_the_known() -> None:
    """A mistyped name is answered with the names there are."""
    with pytest.raises(RecipeError) as caught:
        Recipe.load("phone-int5")

    assert "phone-int4" in caught.value.hint
