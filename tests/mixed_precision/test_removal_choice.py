"""Layers are choices of a search: one is removed where that loses less than fewer bits elsewhere."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compress
from mcpmq.dataset import SampleSet
from mcpmq.estimate.forecast import forecast
from mcpmq.mixed_precision import Budget, Structure, search_recipe
from mcpmq.mixed_precision.choices import Choices, Limit, Option, Removal
from mcpmq.mixed_precision.knapsack import solve
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from mcpmq.system.progress import silent
from tests.compression.test_layers import idle_layer

__all__ = ["idle_layer"]
LAYERS = {
    "language.layers.0": ("language.layers.0.q", "language.layers.0.k"),
    "language.layers.1": ("language.layers.1.q",),
}
sizes_and_losses = st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)), min_size=3, max_size=3)


@settings(max_examples=100, deadline=None)
@given(
    several=st.lists(sizes_and_losses, min_size=4, max_size=4),
    alone=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    share=st.floats(0, 1),
    most=st.integers(0, 2),
)
def test_no_combination_with_removed_layers_is_better(
    several: list[list[tuple[int, float]]], alone: tuple[float, float], share: float, most: int
) -> None:
    """All weights of a layer are removed together, at most as many layers as allowed, with the least loss."""
    names = ["language.head", *(name for weights in LAYERS.values() for name in weights)]
    options = {
        name: [Option(str(number), *one) for number, one in enumerate(values)]
        for name, values in zip(names, several, strict=True)
    }
    removals = [Removal(layer, weights, loss) for (layer, weights), loss in zip(LAYERS.items(), alone, strict=True)]
    limit = Limit(("language",), int(share * sum(max(size for size, _ in one) for one in several)))
    losses = []
    for removed in product([False, True], repeat=2):
        gone = {name for one, is_gone in zip(removals, removed, strict=True) if is_gone for name in one.weights}
        base = sum(one.loss for one, is_gone in zip(removals, removed, strict=True) if is_gone)
        for combination in product(*(options[name] for name in names if name not in gone)):
            if sum(removed) <= most and sum(one.nbytes for one in combination) <= limit.nbytes:
                losses.append(base + sum(one.loss for one in combination))

    found = solve(options, [limit], Choices(tuple(removals), most))

    if found is None:
        assert not losses
        return
    assert all((name in found.options) == (one not in found.removed) for one in removals for name in one.weights)
    assert len(found.removed) <= most
    assert found.loss <= min(losses) + 1e-5


@pytest.fixture
def budget(idle_layer: Path) -> Budget:
    """A limit of three quarters of a model with 8 bits."""
    plan = make_plan(Checkpoint.open(idle_layer), Recipe.load("phone-int8"))
    return Budget(file_nbytes=forecast(plan, ["gguf"], 1024).formats[0].nbytes * 3 // 4)


def test_a_layer_that_changes_nothing_is_removed(idle_layer: Path, budget: Budget, tiny_set: Path) -> None:
    """Its bytes serve the other weights; the recipe has the measured cost, and its artifact the estimated bytes."""
    checkpoint, samples = Checkpoint.open(idle_layer), SampleSet.open(tiny_set)
    base = Recipe.load("phone-int8")
    found = search_recipe(checkpoint, base, "gguf", budget, samples, 1, silent, structure=Structure(max_removed=1))
    assert found.removed == ("language.layers.1",)
    assert found.recipe.layers is not None
    assert found.recipe.layers.kl_divergence < 1e-6
    assert not [name for name in found.options if name.startswith("language.layers.1")]
    assert "Removed, because that loses less than fewer bits elsewhere: language.layers.1." in found.to_toml()
    with compress(checkpoint, found.recipe) as view:
        [estimate] = forecast(make_plan(view, found.recipe), ["gguf"], 1024).formats
    assert estimate.nbytes == found.estimate.nbytes <= (budget.file_nbytes or 0)
