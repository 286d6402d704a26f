"""Recipes: loading, validation and TOML text."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mcpmq.errors import RecipeError
from mcpmq.recipe import Recipe, builtin_recipes, to_toml
from mcpmq.scheme import GgmlScheme, SchemeChoice, parse_scheme


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_built_in_recipe_has_the_name_of_its_file(name: str) -> None:
    """The built-in recipes load and are valid."""
    assert Recipe.load(name).name == name


def test_a_recipe_is_rebuilt_from_its_dict() -> None:
    """`to_dict` has plain values with the defaults filled in, and they validate to an equal recipe."""
    recipe = Recipe.load("calibrated-quality-int4")
    weighted = Recipe.model_validate(
        {**recipe.to_dict(), "method": "gptq", "token_weights": {"vision": 0.25, "text": 1}}
    )
    with_activations = Recipe.model_validate({**recipe.to_dict(), "activations": {"vision.*": "u8"}})

    for one in (recipe, weighted, with_activations):
        assert Recipe.model_validate(one.to_dict()) == one
    assert weighted.to_dict()["token_weights"] == {"vision": 0.25, "text": 1.0, "answer": 1.0, "audio": 1.0}
    assert with_activations.needs_calibration
    assert not Recipe.load("phone-int4").needs_calibration


@pytest.mark.parametrize(
    ("method", "smooth", "needs_calibration", "selects_per_block"),
    [
        ("rtn", "none", False, False),
        ("rtn-imatrix", "none", True, False),
        ("gptq", "none", True, False),
        ("auto", "none", True, True),
        ("rtn", "awq", True, True),
        ("gptq", "smoothquant", True, True),
    ],
)
def test_a_recipe_reports_whether_it_needs_calibration(
    method: Any, smooth: Any, needs_calibration: bool, selects_per_block: bool
) -> None:
    """Every method but rtn needs calibration; `auto` and smoothing select per block."""
    recipe = Recipe(name="x", method=method, smooth=smooth, weights={})

    assert (recipe.needs_calibration, recipe.selects_per_block) == (needs_calibration, selects_per_block)
    assert Recipe.model_validate(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\nweights = 3', "weights"),
        ('name = "x"\n[weights]\n"*" = 4', "weights"),
        ('name = "x"\n[weights]\n"*" = "int3"', "int3"),
        ('name = "x"\nmethod = "worst"\n[weights]', "method"),
        ('name = "x"\nround = "gptq"\n[weights]', "round"),
        ('name = "x"\ncolor = "red"\n[weights]', "color"),
        ('name = "x"\nmethod = "gptq"\n[weights]\n"head" = "nf4"', "`nf4` of `head` supports round-to-nearest only"),
        ('name = "x"\nmethod = "gptq"\n[weights]\n"head" = "q6_k or nf4"', "`nf4` of `head` supports round-to-nearest"),
        ('name = "x"\n[weights]\n"head" = "q6_k or keep"', "`keep` among its schemes"),
        ('name = "x"\nmethod = "gptq"\n[weights]\n[token_weights]\nvision = -1', "vision"),
        ('name = "x"\nmethod = "gptq"\n[weights]\n[token_weights]\nvision = inf', "vision"),
        ('name = "x"\nmethod = "gptq"\n[weights]\n[token_weights]\nsound = 1', "sound"),
        (
            'name = "x"\nmethod = "gptq"\n[weights]\n[token_weights]\nvision = 0\ntext = 0\nanswer = 0\naudio = 0',
            "greater than 0",
        ),
        ('name = "x"\nmethod = "rtn"\n[weights]\n[token_weights]\nvision = 0.5', "needs calibration"),
        ('name = "x"\n[weights]\n[activations]\n"vision.*" = "s8"', "vision"),
        ("name = ", "TOML"),
        ("", "name"),
    ],
)
def test_an_invalid_recipe_file_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    """The error names the invalid key or value of the file."""
    path = tmp_path / "mine.toml"
    path.write_text(text)

    with pytest.raises(RecipeError, match=message):
        Recipe.load(str(path))


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """Windows editors write one; text is read as UTF-8 in every locale."""
    text = 'name = "größe"\n[weights]\n"language.*" = "int4-g32"\n'
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8-sig")

    assert Recipe.load(str(tmp_path / "mine.toml")).name == "größe"


def test_deep_nesting_is_an_error(tmp_path: Path) -> None:
    """The parser has a limit."""
    (tmp_path / "mine.toml").write_text("x = " + "[" * 100_000)

    with pytest.raises(RecipeError, match="not valid TOML"):
        Recipe.load(str(tmp_path / "mine.toml"))


def test_an_unknown_name_is_an_error_with_the_known_names() -> None:
    """The hint lists the built-in recipes."""
    with pytest.raises(RecipeError, match="recipe `phone-int5` not found") as caught:
        Recipe.load("phone-int5")

    assert "phone-int4" in caught.value.hint


@pytest.mark.parametrize("name", builtin_recipes())
def test_toml_text_is_loaded_as_the_same_recipe(tmp_path: Path, name: str) -> None:
    """Name, method, weights and their order survive."""
    original = Recipe.load(name).to_dict()
    (tmp_path / "mine.toml").write_text(to_toml(original))

    loaded = Recipe.load(str(tmp_path / "mine.toml")).to_dict()

    assert loaded == original
    assert list(loaded["weights"]) == list(original["weights"])  # type: ignore[call-overload]


def test_comments_are_written_above_their_lines() -> None:
    """A comment on the file is at its top, one on a weight above the weight."""
    text = to_toml({"name": "x", "weights": {"head": "q6_k"}}, {"": ["why"], "head": ["because"]})

    assert text == '# why\nname = "x"\n\n[weights]\n# because\n"head" = "q6_k"\n'


def test_a_choice_of_schemes_is_one_text() -> None:
    """The values of a recipe have the text of its file, and the search of scales applies to every scheme."""
    weights = {"language.*": "q4_k or iq4_nl", "head": "q6_k or int8-g32"}
    recipe = Recipe.model_validate({"name": "x", "scale_search": "ggml", "weights": weights})

    assert recipe.to_dict()["weights"] == weights
    assert recipe.weights["language.*"] == SchemeChoice((GgmlScheme("q4_k", "ggml"), GgmlScheme("iq4_nl", "ggml")))


def test_the_search_of_scales_is_that_of_the_recipe(tmp_path: Path) -> None:
    """`scale_search` applies to ggml's block types, is in the values of the recipe, and is `mcpmq` by default."""
    recipe = Recipe(
        name="one", scale_search="ggml", weights={"head": parse_scheme("q4_k"), "*": parse_scheme("int8-row")}
    )
    path = tmp_path / "one.toml"
    path.write_text(to_toml(recipe.to_dict()))

    assert recipe.weights["head"] == GgmlScheme("q4_k", "ggml")
    assert Recipe.load(str(path)) == recipe
    assert "scale_search" not in Recipe.load("calibrated-quality-int4").to_dict()
    assert Recipe.load("calibrated-quality-int4").weights["vision.*"] == GgmlScheme("q8_0", "mcpmq")


def test_targets_are_outputs_of_layers_by_default(tmp_path: Path) -> None:
    """`targets` is in the values of the recipe where it is not the default."""
    fields = {"name": "one", "method": "gptq", "weights": {"*": "int8-row"}}
    recipe = Recipe.model_validate({**fields, "targets": "model"})
    path = tmp_path / "one.toml"
    path.write_text(to_toml(recipe.to_dict()))

    assert Recipe.load(str(path)) == recipe
    assert recipe.has_model_targets
    assert not Recipe.model_validate(fields).has_model_targets
    assert "targets" not in Recipe.model_validate(fields).to_dict()


@pytest.mark.parametrize("method", ["rtn", "rtn-imatrix"])
def test_only_gptq_has_targets(method: str) -> None:
    """Round to nearest does not depend on outputs."""
    fields = {"name": "one", "method": method, "weights": {"*": "int8-row"}}
    with pytest.raises(ValidationError, match='`targets = "model"` needs'):
        Recipe.model_validate({**fields, "targets": "model"})
    assert Recipe.model_validate({**fields, "method": "auto", "targets": "model"}).has_model_targets
