"""A recipe written as TOML is the recipe, with comments where they belong."""

from pathlib import Path

import pytest

from mcpmq.recipe import Recipe, builtin_recipes
from mcpmq.recipe_file import as_toml


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
