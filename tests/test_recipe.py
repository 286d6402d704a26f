"""Recipes and schemes: what is written is what is read, and what is wrong is named."""

from pathlib import Path
from typing import Any

import pytest

from mcpmq.errors import RecipeError
from mcpmq.recipe import Recipe, as_toml, builtin_recipes


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


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_recipe_is_read_back_as_it_was(tmp_path: Path, name: str) -> None:
    """Names, methods, weights and their order."""
    written = Recipe.load(name).written()
    (tmp_path / "mine.toml").write_text(as_toml(written))

    again = Recipe.load(str(tmp_path / "mine.toml")).written()

    assert again == written
    assert list(again["weights"]) == list(written["weights"])  # type: ignore[call-overload]


def test_comments_stand_above_what_they_are_about() -> None:
    """Of the file, and of a weight."""
    text = as_toml({"name": "x", "weights": {"head": "q6_k"}}, {"": ["why"], "head": ["because"]})

    assert text == '# why\nname = "x"\n\n[weights]\n# because\n"head" = "q6_k"\n'
