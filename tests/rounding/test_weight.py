"""One weight of a plan is quantized with one or several statistics for its rows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import DatasetError
from mcpmq.grids import codebook
from mcpmq.plan import Plan, TensorPlan, make_plan
from mcpmq.qtensor import CodebookTensor, IntegerTensor
from mcpmq.recipe import Recipe
from mcpmq.rounding import gptq, rtn
from mcpmq.rounding import weight as weight_module
from mcpmq.rounding.smoothing import WeightScaling
from mcpmq.rounding.stats import InputStats
from mcpmq.rounding.weight import quantize_weight
from mcpmq.scheme import CodebookScheme, IntegerScheme
from tests.rounding.oracle import input_stats, same_bytes


@pytest.fixture
def plan(tiny_checkpoint: Path) -> Plan:
    """The plan of calibrated-int4 for the tiny checkpoint."""
    return make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("calibrated-int4"))


def _planned(plan: Plan, name: str) -> tuple[TensorPlan, torch.Tensor, IntegerScheme]:
    """Return the plan, the values and the scheme of a weight."""
    tensor = next(tensor for tensor in plan.tensors if tensor.name == name)
    assert isinstance(tensor.scheme, IntegerScheme)
    return tensor, plan.checkpoint.load(tensor.spec), tensor.scheme


def _random_stats(columns: int, seed: int) -> InputStats:
    return input_stats(torch.randn(2 * columns, columns, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("chunk_weights", [1 << 27, 256 * 100])
def test_one_statistic_applies_to_all_rows(plan: Plan, chunk_weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows read at a time do not change the result."""
    monkeypatch.setattr(weight_module, "GPTQ_CHUNK_WEIGHTS", chunk_weights)
    (tensor, weight, scheme), stats = _planned(plan, "head"), _random_stats(256, 0)

    quantized = quantize_weight(plan, tensor, (stats,), "gptq").stored

    assert isinstance(quantized, IntegerTensor)
    assert same_bytes(quantized, gptq.quantize(weight, scheme, stats))


def test_three_statistics_apply_to_a_third_of_the_rows_each(plan: Plan) -> None:
    """Queries, keys and values of a packed projection have statistics of their own, in this order."""
    tensor, weight, scheme = _planned(plan, "projector.attention.qkv")
    stats = [_random_stats(256, seed) for seed in range(3)]

    quantized = quantize_weight(plan, tensor, stats, "gptq").stored

    assert isinstance(quantized, IntegerTensor)
    for number, one in enumerate(stats):
        rows = slice(256 * number, 256 * number + 256)
        assert same_bytes(quantized.slice_rows(rows), gptq.quantize(weight[rows], scheme, one))


def test_a_weight_without_statistics_is_rounded_to_nearest(plan: Plan) -> None:
    """Tables have no statistics under any recipe."""
    tensor, weight, scheme = _planned(plan, "embedding")

    quantized = quantize_weight(plan, tensor).stored

    assert isinstance(quantized, IntegerTensor)
    assert same_bytes(quantized, rtn.quantize(weight, scheme))


def test_a_tall_weight_is_rounded_to_a_codebook(tiny_checkpoint: Path) -> None:
    """All rows of a weight with more rows than columns are quantized."""
    plan = make_plan(
        Checkpoint.open(tiny_checkpoint), Recipe.model_validate({"name": "nf4", "weights": {"language.*": "nf4"}})
    )
    tensor = next(one for one in plan.tensors if one.name == "language.layers.0.mlp.up")

    quantized = quantize_weight(plan, tensor).stored

    assert isinstance(quantized, CodebookTensor)
    assert quantized.codes.shape == (512, 256)
    expected = codebook.quantize([plan.checkpoint.load(tensor.spec)], 512, CodebookScheme("nf4"))
    assert same_bytes(quantized, expected)


@pytest.mark.parametrize("chunk_weights", [1 << 24, 256 * 100])
def test_rows_are_scaled_from_the_first_row(plan: Plan, chunk_weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk of rows is divided by the scales of its own rows."""
    monkeypatch.setattr(weight_module, "THREAD_CHUNK_WEIGHTS", chunk_weights)
    tensor, weight, scheme = _planned(plan, "head")
    scaling = WeightScaling(row_scale=torch.arange(1.0, 321.0), column_scale=torch.arange(2.0, 258.0))

    quantized = quantize_weight(plan, tensor, scaling=scaling).stored

    assert isinstance(quantized, IntegerTensor)
    assert same_bytes(quantized, rtn.quantize(scaling.apply(weight), scheme))


def test_parts_of_the_rows_with_inputs_of_zero_are_rounded_to_nearest(plan: Plan) -> None:
    """The other parts are quantized by the method; the note has the number of parts."""
    tensor, weight, scheme = _planned(plan, "projector.attention.qkv")
    stats = [_random_stats(256, 0), input_stats(torch.zeros(3, 256)), _random_stats(256, 2)]

    rounded = quantize_weight(plan, tensor, stats, "gptq")

    assert isinstance(rounded.stored, IntegerTensor)
    assert same_bytes(rounded.stored.slice_rows(slice(256, 512)), rtn.quantize(weight[256:512], scheme))
    assert same_bytes(rounded.stored.slice_rows(slice(512, 768)), gptq.quantize(weight[512:], scheme, stats[2]))
    assert rounded.method == "gptq"
    assert rounded.deviations == (
        "1 of 3 equal parts of its rows rounded to nearest: the calibration inputs are all zero",
    )


def test_errors_of_a_method_name_the_weight(plan: Plan) -> None:
    """A Hessian that cannot be factored, and statistics of another layer."""
    tensor, _, _ = _planned(plan, "head")
    indefinite = torch.full((256, 256), -100.0) + 200 * torch.eye(256)
    stats = replace(_random_stats(256, 0), gram=indefinite)

    with pytest.raises(DatasetError, match="`head`: a Hessian of 256 columns is not positive definite"):
        quantize_weight(plan, tensor, (stats,), "gptq")
    with pytest.raises(DatasetError, match="`head`: `gptq` needs input statistics of 256 columns, got 64 columns"):
        quantize_weight(plan, tensor, (_random_stats(64, 0),), "gptq")


def test_more_shrinkage_is_a_deviation(plan: Plan) -> None:
    """A slightly indefinite Hessian of many tokens is shrunk by more than these need."""
    tensor, _, _ = _planned(plan, "head")
    gram = torch.full((256, 256), 100.0) - 5 * torch.eye(256)

    stats = replace(_random_stats(256, 0), gram=gram, total_weight=1e6)
    rounded = quantize_weight(plan, tensor, (stats,), "gptq")

    assert rounded.deviations == ("a Hessian of 256 columns needed shrinkage by 0.1",)


@pytest.mark.parametrize("exponent", [-90, 70])
def test_hessians_of_any_magnitude_give_the_same_codes(plan: Plan, exponent: int) -> None:
    """Products of squared inputs would be 0 or infinite in float32."""
    (tensor, _, _), stats = _planned(plan, "head"), _random_stats(256, 0)
    scaled = replace(stats, gram=stats.gram * 2.0**exponent)

    for method in ("gptq", "rtn-imatrix"):
        one, other = (quantize_weight(plan, tensor, (part,), method).stored for part in (stats, scaled))
        assert isinstance(one, IntegerTensor)
        assert isinstance(other, IntegerTensor)
        assert same_bytes(one, other)


@pytest.mark.parametrize("is_better", [True, False])
def test_a_matrix_worse_than_round_to_nearest_is_replaced(
    plan: Plan, is_better: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final matrix is compared on the held-out inputs; the fallback is recorded."""
    (tensor, weight, scheme), stats = _planned(plan, "head"), _random_stats(256, 0)
    held_out = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    compared = []

    def compare(rows: torch.Tensor, *_: object) -> bool:
        compared.append(len(rows))
        return is_better

    monkeypatch.setattr(weight_module, "nearest_is_better", compare)

    rounded = quantize_weight(plan, tensor, (replace(stats, held_out_inputs=held_out),), "gptq")

    assert compared == [len(weight)]
    assert isinstance(rounded.stored, IntegerTensor)
    assert same_bytes(rounded.stored, rtn.quantize(weight, scheme)) is is_better
    note = ("rounded to nearest: gptq has a larger error on held-out samples",)
    assert (rounded.method, rounded.deviations) == (("rtn", note) if is_better else ("gptq", ()))
    assert (rounded.shrinkage == (None,)) is is_better
