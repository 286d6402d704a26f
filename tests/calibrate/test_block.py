"""A block is quantized with every candidate, and the candidate with the least loss is kept and recorded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mcpmq.calibrate.block import BlockQuantizer, BlockStats, StatsRounder, smoothing_scales
from mcpmq.calibrate.selection import BlockLoss, candidates
from mcpmq.checkpoint import Checkpoint
from mcpmq.execution.chunked_matmul import serial_map
from mcpmq.execution.torch_model import StoredWeight
from mcpmq.grids import dequantize
from mcpmq.plan import Plan, make_plan
from mcpmq.qtensor import IntegerTensor, QTensor
from mcpmq.quantized_model import CalibrationResult
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDING_FUNCTIONS
from tests.rounding.oracle import input_stats, random_layer

BLOCK = "language.layers.1"
CANDIDATES = ["rtn-imatrix", "gptq", "awq+rtn-imatrix", "awq+gptq"]


@pytest.fixture(scope="module")
def plan(tiny_checkpoint: Path) -> Plan:
    """A plan of a recipe with four candidates."""
    recipe = {"name": "all", "method": "auto", "smooth": "awq", "weights": {"language.*": "int4-g32"}}
    return make_plan(Checkpoint.open(tiny_checkpoint), Recipe.model_validate(recipe))


def block_stats(plan: Plan) -> BlockStats:
    """Statistics of inputs with very different magnitudes; balance layers of one mapping share them."""
    stats: BlockStats = {}
    for mapping in plan.smoothing_mappings[BLOCK]:
        columns = 512 if mapping.balance_layers[0].endswith("down") else 256
        shared = (input_stats(random_layer(1, columns, seed=len(mapping.balance_layers))[1]),)
        stats |= dict.fromkeys(mapping.balance_layers, shared)
    return stats


def quantized(
    plan: Plan, loss: BlockLoss | None, count: int = 4
) -> tuple[BlockQuantizer, dict[str, StoredWeight], CalibrationResult]:
    """The block after its first candidates, this many."""
    weights = {tensor.name: plan.checkpoint.load(tensor.spec).float() for tensor in plan.blocks[BLOCK]}
    stats = block_stats(plan)
    scales = smoothing_scales(plan, BLOCK, weights, stats, serial_map)
    quantizer = BlockQuantizer(plan, BLOCK, StatsRounder(plan, BLOCK, stats, scales, 1, {}), scales)
    return quantizer, *quantizer.quantize(candidates(plan.recipe, can_smooth=True)[:count], loss)


def fixed_losses(losses: list[float]) -> tuple[BlockLoss, list[Mapping[str, StoredWeight]]]:
    """A loss function that returns these values in order, and the list of the weights that it was called with."""
    remaining, calls = iter(losses), []

    def loss(weights: Mapping[str, StoredWeight], _: Any) -> float:
        calls.append(weights)
        return next(remaining)

    return loss, calls


@pytest.mark.parametrize(
    ("losses", "best"), [([2, 1, 3, 4], 1), ([1, 1, 1, 1], 0), ([4, 2, 2, 2], 1), ([4, 3, 2, 1], 3)]
)
def test_the_least_loss_wins_and_the_simplest_of_equals(plan: Plan, losses: list[float], best: int) -> None:
    """The kept weights are those of the best candidate; the result has the loss of every candidate."""
    loss, calls = fixed_losses(losses)

    quantizer, kept, result = quantized(plan, loss)

    assert kept is calls[best]
    assert result.errors == dict(zip(CANDIDATES, losses, strict=True))
    up = result.weights[f"{BLOCK}.mlp.up"]
    assert up["method"] == CANDIDATES[best].removeprefix("awq+")
    assert ("smoothing_exponent" in up) == CANDIDATES[best].startswith("awq")
    assert quantizer.rounder.stats == {}  # type: ignore[attr-defined]


def test_each_candidate_rounds_its_own_weights(plan: Plan) -> None:
    """Plain candidates round the original weights, smoothing ones scaled weights with scaled statistics.

    Dequantized and unscaled, all are near the original.
    """
    loss, calls = fixed_losses([4, 3, 2, 1])
    quantizer, _, _ = quantized(plan, loss)
    name = f"{BLOCK}.mlp.up"
    tensor = next(tensor for tensor in plan.tensors if tensor.name == name)
    weight = plan.checkpoint.load(tensor.spec)
    columns = next(scales.column_scale for scales in quantizer.scales if name in scales.mapping.balance_layers)
    rows = next(scales.channel_scale for scales in quantizer.scales if scales.mapping.smooth_layer == name)

    [plain] = block_stats(plan)[name]
    expected = ROUNDING_FUNCTIONS["gptq"](weight, tensor.scheme, plain)  # type: ignore[arg-type]
    assert torch.equal(_codes(calls[1][name]), _codes(expected))

    [scaled] = block_stats(plan)[name]
    scaled.gram.div_(columns).div_(columns[:, None])
    for index, method in ((2, "rtn-imatrix"), (3, "gptq")):
        found = calls[index][name]
        assert isinstance(found, QTensor)
        expected = ROUNDING_FUNCTIONS[method](weight.float() * columns / rows[:, None], tensor.scheme, scaled)  # type: ignore[index, arg-type]
        assert torch.equal(_codes(found), _codes(expected))
        assert (dequantize(found) * rows[:, None] / columns - weight).norm() < 0.5 * weight.norm()


def _codes(weight: StoredWeight) -> torch.Tensor:
    assert isinstance(weight, IntegerTensor)
    return weight.codes


def test_norms_are_scaled_in_float32(plan: Plan) -> None:
    """A smoothed norm is divided by its scales in float32; an unsmoothed norm keeps its values."""
    loss, calls = fixed_losses([4, 3, 2, 1])
    quantizer, _, _ = quantized(plan, loss)
    name = f"{BLOCK}.input_norm"
    norm = plan.checkpoint.load(next(tensor.spec for tensor in plan.tensors if tensor.name == name)).float()
    channels = next(scales.channel_scale for scales in quantizer.scales if scales.mapping.smooth_layer == name)

    assert calls[0][name].dtype is torch.float32  # type: ignore[union-attr]
    assert torch.equal(calls[0][name], norm)  # type: ignore[arg-type]
    assert torch.equal(calls[3][name], norm / channels)  # type: ignore[arg-type]


def test_one_candidate_needs_no_loss(plan: Plan) -> None:
    """It is kept, and the result has no error."""
    _, _, result = quantized(plan, None, count=1)

    assert result.errors == {}
    assert {fields["method"] for fields in result.weights.values()} == {"rtn-imatrix"}
