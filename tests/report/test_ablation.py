"""One component at a time: all others are the original's, and together they are the artifact."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import ORIGINAL, Settings, differences, encoded, measure, measure_original
from mcpmq.execution.torch_model import floats_of
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.report.ablation import (
    SPLIT_FILE,
    TOGETHER,
    Split,
    _runner,
    split,
    table_of,
)

SETTINGS = Settings(threads=1)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def coarse(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """Vision and language on coarse grids; all else as it was."""
    recipe = {"name": "coarse", "weights": {"vision.*": "int4-row", "language.*": "int4-row"}}
    recipe["weights"] |= {"vision.position_embedding": "int8-row"}  # type: ignore[operator]
    return quantize(make_plan(checkpoint, Recipe.model_validate(recipe)), tmp_path_factory.mktemp("coarse") / "q")


@pytest.fixture(scope="module")
def found(checkpoint: Checkpoint, coarse: Quantized, mixed_set: CalibrationSet) -> Split:
    """What each of them costs."""
    return split(checkpoint, coarse, mixed_set, SETTINGS)


def test_a_component_is_quantized_and_the_others_are_the_originals(checkpoint: Checkpoint, coarse: Quantized) -> None:
    """Weight by weight."""
    weights = _runner(checkpoint, coarse, frozenset({"vision"})).weights
    for spec in checkpoint.specs:
        stored = coarse.load(spec.name) if spec.component == "vision" else checkpoint.load(spec)
        assert torch.equal(weights.floats(spec), floats_of(stored, spec)), spec.name


def test_components_are_those_that_are_quantized(found: Split, coarse: Quantized) -> None:
    """In the order of the forward pass; bytes are the plan's, schemes the recipe's."""
    assert list(found.components) == ["vision", "language", TOGETHER]
    assert found.components["language"].schemes == ("int4-row",)
    assert set(found.components["vision"].schemes) == {"int4-row", "int8-row"}
    sizes = [found.components[name].nbytes for name in ("vision", "language")]
    assert sum(sizes) == found.components[TOGETHER].nbytes
    assert sum(sizes) == sum(step.nbytes for step in coarse.steps if step.spec.component in ("vision", "language"))
    assert all(cost.nbytes < cost.original_nbytes for cost in found.components.values())


def test_text_does_not_see_what_vision_lost(found: Split) -> None:
    """A question without an image costs exactly nothing more while only vision is quantized; others do cost."""
    vision, language = (found.components[name].differences for name in ("vision", "language"))
    assert vision["text"].kl_divergence.value < 1e-6
    assert vision["image"].kl_divergence.value > 1e-4
    assert language["text"].kl_divergence.value > 1e-4


def test_together_they_are_the_artifact(
    found: Split, checkpoint: Checkpoint, coarse: Quantized, mixed_set: CalibrationSet
) -> None:
    """The same figures as when the artifact is measured as a whole, in a process of its own."""
    with encoded(checkpoint, mixed_set, SETTINGS) as inputs:
        original = measure_original(checkpoint, inputs, SETTINGS)
        whole = measure(coarse.artifact, inputs, SETTINGS, {ORIGINAL: original.log_probabilities})
    expected = differences(original.measurement.samples, whole.samples, ORIGINAL)
    for kind, difference in found.components[TOGETHER].differences.items():
        np.testing.assert_allclose(difference.loss_increase.value, expected[kind].loss_increase.value, atol=1e-6)
        np.testing.assert_allclose(difference.kl_divergence.value, expected[kind].kl_divergence.value, atol=1e-6)


def test_the_split_is_kept_and_drawn(found: Split, tmp_path: Path) -> None:
    """JSON that reads back; a column a component, and shares that add up."""
    found.write(tmp_path)
    assert Split.model_validate_json((tmp_path / SPLIT_FILE).read_bytes()) == found
    assert json.loads((tmp_path / SPLIT_FILE).read_text())["recipe"] == "coarse"

    table = table_of(found)
    assert list(table.columns) == ["vision", "language", TOGETHER]
    shares = [cells for name, cells in table.rows if "share" in name]
    assert len(shares) == len(found.components[TOGETHER].differences)
    assert all(abs(sum(map(float, cells[:-1])) - 100) < 0.11 and not cells[-1] for cells in shares)


def test_what_cannot_be_split_is_refused(
    checkpoint: Checkpoint, tiny_full: Quantized, coarse: Quantized, mixed_set: CalibrationSet, tmp_path: Path
) -> None:
    """Another checkpoint's artifact, and one in which nothing is quantized."""
    from tests.tiny import CONFIG, build_checkpoint

    other = Checkpoint.open(build_checkpoint(tmp_path / "other", CONFIG, seed=1))
    with pytest.raises(ArtifactError, match="was made from"):
        split(other, coarse, mixed_set, SETTINGS)
    recipe = Recipe.model_validate({"name": "nothing", "weights": {}})
    kept = quantize(make_plan(checkpoint, recipe), tmp_path / "kept")
    with pytest.raises(ArtifactError, match="nothing in"):
        split(checkpoint, kept, mixed_set, SETTINGS)
