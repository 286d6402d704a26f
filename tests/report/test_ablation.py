"""Component ablation: other components are those of the original, and all together are the quantized model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import ORIGINAL, Settings, differences, encode_samples, measure, measure_original
from mcpmq.execution.torch_model import to_float
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.report.ablation import (
    ABLATION_FILE,
    ALL_COMPONENTS,
    ComponentAblation,
    _runner,
    ablate_components,
    ablation_table,
)

SETTINGS = Settings(threads=1)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """Return the tiny checkpoint."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def coarse(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """Return a model with vision and language in 4 bits and the rest unquantized."""
    recipe = {"name": "coarse", "weights": {"vision.*": "int4-row", "language.*": "int4-row"}}
    recipe["weights"] |= {"vision.position_embedding": "int8-row"}  # type: ignore[operator]
    return quantize(make_plan(checkpoint, Recipe.model_validate(recipe)), tmp_path_factory.mktemp("coarse") / "q")


@pytest.fixture(scope="module")
def ablation(checkpoint: Checkpoint, coarse: QuantizedModel, mixed_set: SampleSet) -> ComponentAblation:
    """Return the ablation of the coarse model."""
    return ablate_components(checkpoint, coarse, mixed_set, SETTINGS)


def test_other_components_have_the_weights_of_the_original(checkpoint: Checkpoint, coarse: QuantizedModel) -> None:
    """The runner loads quantized weights of one component and original weights of all others."""
    weights = _runner(checkpoint, coarse, frozenset({"vision"})).weights
    for spec in checkpoint.specs:
        stored = coarse.load(spec.name) if spec.component == "vision" else checkpoint.load(spec)
        assert torch.equal(weights.load_float32(spec), to_float(stored, spec)), spec.name


def test_components_are_those_that_are_quantized(ablation: ComponentAblation, coarse: QuantizedModel) -> None:
    """They are in the order of the forward pass, with the bytes of the plan and the schemes of the recipe."""
    assert list(ablation.components) == ["vision", "language", ALL_COMPONENTS]
    assert ablation.components["language"].schemes == ("int4-row",)
    assert set(ablation.components["vision"].schemes) == {"int4-row", "int8-row"}
    sizes = [ablation.components[name].nbytes for name in ("vision", "language")]
    assert sum(sizes) == ablation.components[ALL_COMPONENTS].nbytes
    assert sum(sizes) == sum(one.nbytes for one in coarse.tensors if one.spec.component in ("vision", "language"))
    assert all(result.nbytes < result.original_nbytes for result in ablation.components.values())


def test_quantized_vision_does_not_change_text_samples(ablation: ComponentAblation) -> None:
    """With only vision quantized, samples without an image have no divergence, and samples with an image have one."""
    vision, language = (ablation.components[name].differences for name in ("vision", "language"))
    assert vision["text"].kl_divergence.value < 1e-6
    assert vision["image"].kl_divergence.value > 1e-4
    assert language["text"].kl_divergence.value > 1e-4


def test_all_components_are_the_quantized_model(
    ablation: ComponentAblation, checkpoint: Checkpoint, coarse: QuantizedModel, mixed_set: SampleSet
) -> None:
    """The differences equal those of the quantized model measured in its own process."""
    with encode_samples(checkpoint, mixed_set, SETTINGS) as inputs:
        original = measure_original(checkpoint, inputs, SETTINGS)
        whole = measure(coarse.artifact, inputs, SETTINGS, {ORIGINAL: original.logprobs})
    expected = differences(original.measurement.samples, whole.samples, ORIGINAL)
    for group, difference in ablation.components[ALL_COMPONENTS].differences.items():
        np.testing.assert_allclose(difference.loss_increase.value, expected[group].loss_increase.value, atol=1e-6)
        np.testing.assert_allclose(difference.kl_divergence.value, expected[group].kl_divergence.value, atol=1e-6)


def test_the_ablation_is_written_and_printed(ablation: ComponentAblation, tmp_path: Path) -> None:
    """The JSON is read back; the table has a column for every component, and shares sum to 100 %."""
    ablation.write(tmp_path)
    assert ComponentAblation.model_validate_json((tmp_path / ABLATION_FILE).read_bytes()) == ablation
    assert json.loads((tmp_path / ABLATION_FILE).read_text())["recipe"] == "coarse"

    table = ablation_table(ablation)
    assert list(table.columns) == ["vision", "language", ALL_COMPONENTS]
    shares = [cells for name, cells in table.rows if "share" in name]
    assert len(shares) == len(ablation.components[ALL_COMPONENTS].differences)
    assert all(abs(sum(map(float, cells[:-1])) - 100) < 0.11 and not cells[-1] for cells in shares)


def test_invalid_artifacts_are_an_error(
    checkpoint: Checkpoint, tiny_full: QuantizedModel, coarse: QuantizedModel, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """An artifact of another checkpoint, and one without a quantized weight."""
    from tests.tiny import CONFIG, build_checkpoint

    other = Checkpoint.open(build_checkpoint(tmp_path / "other", CONFIG, seed=1))
    with pytest.raises(ArtifactError, match="was made from"):
        ablate_components(other, coarse, mixed_set, SETTINGS)
    recipe = Recipe.model_validate({"name": "nothing", "weights": {}})
    kept = quantize(make_plan(checkpoint, recipe), tmp_path / "kept")
    with pytest.raises(ArtifactError, match="no weight of"):
        ablate_components(checkpoint, kept, mixed_set, SETTINGS)
