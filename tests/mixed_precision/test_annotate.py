"""Comments of a recipe give the share of the loss of each line."""

from mcpmq.mixed_precision.annotate import annotate
from mcpmq.mixed_precision.choices import Option
from mcpmq.recipe import Recipe

OPTIONS = {
    "language.layers.0.mlp.up": [Option("q4_k", 10, 0.4), Option("q6_k", 20, 0.1)],
    "language.layers.1.mlp.up": [Option("q4_k", 10, 0.2), Option("q6_k", 20, 0.05)],
    "head": [Option("q4_k", 10, 0.7), Option("q6_k", 20, 0.3)],
}


def test_lines_have_their_share_of_the_loss() -> None:
    """A line has its number of weights, its share, and the share on the scheme of the line before, if there is one."""
    weights = {"language.*": "q4_k", "language.layers.0.mlp.up": "q6_k", "head": "q6_k"}
    recipe = Recipe.model_validate({"name": "x", "weights": weights})

    comments = annotate(recipe, OPTIONS, ["summary"])

    assert comments == {
        "": ["summary"],
        "language.*": ["33.3% of the loss"],  # 0.2 of 0.2 + 0.1 + 0.3
        "language.layers.0.mlp.up": ["16.7% of the loss; on q4_k 66.7%"],
        "head": ["50.0% of the loss"],
    }


def test_a_line_counts_its_weights() -> None:
    """Two weights on one line have their common share."""
    recipe = Recipe.model_validate({"name": "x", "weights": {"language.*": "q4_k", "head": "q6_k"}})

    assert annotate(recipe, OPTIONS, [])["language.*"] == ["2 weights, 66.7% of the loss"]
