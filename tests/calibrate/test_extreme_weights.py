"""Calibrated recipes with weights outside the range of fp16 scales, and with matrices whose inputs are all zero."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mcpmq.artifact import WeightRecord
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import ScaleError
from mcpmq.grids.activation import ActivationGrid
from mcpmq.plan import make_plan
from mcpmq.qtensor import QTensor
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.rounding import rtn
from tests.commands import Command
from tests.rounding.oracle import grid_scheme, same_bytes
from tests.tiny import SMALL_CONFIG, build_checkpoint, change_weights, multiply

LAYER = "language.layers.1"
NOTE = "rounded to nearest: the calibration inputs are all zero"


def _recipe(method: str, **more: Any) -> Recipe:
    fields = {"name": "calibrated", "method": method, "weights": {"language.*": "int4-g32", "head": "int8-g32"}}
    return Recipe.model_validate({**fields, **more})


def _without(*names: str) -> Any:
    """Return a change that makes weights, and their biases, zero."""

    def change(name: str, value: Tensor) -> Tensor:
        return torch.zeros_like(value) if name.removesuffix(".bias") in names else value

    return change


def _quantize(folder: Path, change: Any, recipe: Recipe, samples: SampleSet) -> QuantizedModel:
    checkpoint = Checkpoint.open(change_weights(build_checkpoint(folder / "checkpoint", SMALL_CONFIG), change))
    return quantize(make_plan(checkpoint, recipe), folder / recipe.name, samples)


def _records(model: QuantizedModel) -> dict[str, WeightRecord]:
    return {record.name: record for record in model.artifact.manifest.weights}


@pytest.mark.parametrize("method", ["gptq", "rtn-imatrix", "auto"])
def test_a_norm_without_weights_does_not_stop_a_calibrated_recipe(
    method: str, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """Its matrices are rounded to nearest and the manifest names them; other matrices are calibrated."""
    smooth = {"smooth": "awq"} if method == "auto" else {}
    quantized = _quantize(tmp_path, _without(f"{LAYER}.input_norm"), _recipe(method, **smooth), mixed_set)

    records, stored = _records(quantized), quantized.load(f"{LAYER}.attention.q")
    for name in ("q", "k", "v"):
        record = records[f"{LAYER}.attention.{name}"]
        assert (record.method, record.deviation) == ("rtn", NOTE)
    assert records[f"{LAYER}.mlp.up"].method in ("gptq", "rtn-imatrix")
    assert records[f"{LAYER}.mlp.up"].deviation is None
    spec = quantized.specs[f"{LAYER}.attention.q"]
    weight = Checkpoint.open(tmp_path / "checkpoint").load(spec)
    assert isinstance(stored, QTensor)
    assert same_bytes(stored, rtn.quantize(weight, grid_scheme("int4-g32")))


def test_methods_are_selected_although_all_outputs_are_zero(mixed_set: SampleSet, tmp_path: Path) -> None:
    """Without a final norm the held-out outputs of the head are all zero, and every candidate has no error."""
    quantized = _quantize(tmp_path, _without("language.norm"), _recipe("auto"), mixed_set)

    assert _records(quantized)["head"].deviation == NOTE
    assert quantized.artifact.manifest.held_out_errors is not None
    assert set(quantized.artifact.manifest.held_out_errors["head"].values()) == {0.0}


def test_deviations_are_notices(mcpmq: Command, tiny_set: Path, tmp_path: Path) -> None:
    """The command prints the weights and the reasons to stderr, and the number of them in the table."""
    checkpoint = change_weights(
        build_checkpoint(tmp_path / "checkpoint", SMALL_CONFIG), _without(f"{LAYER}.input_norm")
    )
    arguments = ["quantize", checkpoint, tmp_path / "out", "--recipe", "calibrated-int4", "--calibration", tiny_set]

    result = mcpmq(*arguments)

    assert result.exit_code == 0
    assert f"`{LAYER}.attention.q`: {NOTE}" in result.stderr
    assert "3 weights, in the field `deviation` of mcpmq.json" in " ".join(result.stdout.split())


@pytest.mark.parametrize("method", ["gptq", "rtn-imatrix"])
def test_calibrated_codes_of_a_rescaled_checkpoint_equal_those_of_the_original(
    method: str, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """Inputs of `down` are divided by the powers of two that its columns are multiplied by."""
    original = _quantize(tmp_path / "a", multiply(), _recipe(method), mixed_set)
    rescaled = _quantize(tmp_path / "b", multiply(mlp__up=-22, mlp__down=22), _recipe(method), mixed_set)

    records = _records(rescaled)
    assert records[f"{LAYER}.mlp.up"].row_exponents == {22: 256}
    assert records[f"{LAYER}.mlp.down"].column_exponents == {-22: 256}
    assert records[f"{LAYER}.mlp.down"].method == method
    for name in original.records:
        one, other = original.load(name), rescaled.load(name)
        if isinstance(one, QTensor):
            assert isinstance(other, QTensor)
            assert same_bytes(one, other), name


def test_smoothing_scales_multiply_powers_of_two(mixed_set: SampleSet, tmp_path: Path) -> None:
    """The search of AWQ runs on rescaled weights and finds the exponents of the original."""
    recipe = _recipe("auto", smooth="awq")
    original = _quantize(tmp_path / "a", multiply(), recipe, mixed_set)
    rescaled = _quantize(tmp_path / "b", multiply(mlp__up=-22, mlp__down=22), recipe, mixed_set)

    errors, others = original.artifact.manifest.held_out_errors, rescaled.artifact.manifest.held_out_errors
    assert errors is not None
    assert others is not None
    for block in errors:
        assert others[block] == pytest.approx(errors[block], rel=1e-3)
    for name, record in _records(original).items():
        assert record.smoothing_exponent == _records(rescaled)[name].smoothing_exponent


def test_a_small_range_of_inputs_is_an_error(tmp_path: Path, mixed_set: SampleSet) -> None:
    """Activation scales are float32; a norm of 2^-130 has inputs below 255 of the smallest one."""
    recipe = _recipe("rtn", weights={"language.*": "int8-row"}, activations={"language.*": "u8"})

    with pytest.raises(ScaleError, match=f"the inputs of `{LAYER}.attention.q` have a range of .*, too small"):
        _quantize(tmp_path, _small_norm, recipe, mixed_set)

    assert ActivationGrid.from_range((0.0, 0.0), "u8").scale == 1


def _small_norm(name: str, value: Tensor) -> Tensor:
    return value.float() * 2.0**-124 if name == f"{LAYER}.input_norm" else value
