"""GPTQ on every grid against the column loop of its paper and against round to nearest."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcpmq.errors import DatasetError
from mcpmq.grids import dequantize, ggml, integer
from mcpmq.qtensor import GgmlTensor, IntegerTensor, QTensor
from mcpmq.rounding import gptq, rtn
from mcpmq.rounding.stats import InputStats
from mcpmq.scheme import IntegerScheme
from tests.rounding.oracle import (
    SCHEMES,
    VECTOR_SCHEMES,
    ColumnValues,
    expected_importance,
    grid_scheme,
    input_stats,
    random_layer,
    reference_gptq,
    same_bytes,
    tensor_parts,
)


@pytest.fixture
def without_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQ as in its paper, without the descent that follows."""
    monkeypatch.setattr("mcpmq.rounding.gptq.SWEEPS", 0)


def _unshrunk_stats(inputs: Tensor) -> InputStats:
    """Return statistics for the Hessian of the paper."""
    return replace(input_stats(inputs), shrinkage=0.0)


def _grid_values(quantized: QTensor) -> ColumnValues:
    """Return the values of every code of each column on the chosen grid, found by dequantizing every code."""
    tensors = _with_every_code(quantized)
    choices = torch.stack([dequantize(tensor) for tensor in tensors], dim=-1).double()
    return lambda column, compensated: choices[:, column]


def _with_every_code(quantized: QTensor) -> list[QTensor]:
    if isinstance(quantized, GgmlTensor):
        scheme = quantized.scheme
        bits = {"q8_0": 8, "q5_0": 5, "q5_k": 5, "q6_k": 6, "q2_k": 2, "q3_k": 3}.get(scheme.name, 4)
        padded = (quantized.rows, -(-quantized.columns // scheme.block_columns) * scheme.block_columns)
        codes = range(1 if scheme.name == "q8_0" else 0, 2**bits)
        filled = (torch.full(padded, code, dtype=torch.uint8) for code in codes)
        return [replace(quantized, blocks=ggml.replace_codes(quantized.blocks, one, scheme)) for one in filled]
    assert isinstance(quantized, IntegerTensor)
    codes = range(_lowest_code(quantized.scheme), 2**quantized.scheme.bits)
    return [replace(quantized, codes=torch.full_like(quantized.codes, code)) for code in codes]


def _lowest_code(scheme: IntegerScheme) -> int:
    return 1 if scheme.symmetric and scheme.bits == 8 else 0


def _output_error(quantized: QTensor, weight: Tensor, inputs: Tensor) -> float:
    return float((inputs @ (dequantize(quantized) - weight).T).square().sum())


@pytest.mark.usefixtures("without_descent")
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("text", SCHEMES)
def test_codes_equal_those_of_the_column_loop(text: str, act_order: bool) -> None:
    """On the chosen grid every column gets the code of the paper's loop, except for rare ties."""
    weight, inputs = random_layer(16, 304)
    stats, scheme = _unshrunk_stats(inputs), grid_scheme(text)

    quantized = gptq.quantize(weight, scheme, stats, act_order)

    expected = reference_gptq(weight, stats.gram, _order(stats.gram, act_order), 304, _grid_values(quantized))
    same = torch.isclose(dequantize(quantized).double(), expected, rtol=1e-5, atol=1e-9)
    assert same.double().mean() > 0.99


@pytest.mark.usefixtures("without_descent")
@pytest.mark.parametrize("text", ["int4-g32", "int8-g64", "int4-g32-asym", "int4-g128"])
def test_scales_are_chosen_for_the_compensated_group(text: str) -> None:
    """Without act-order the scales are those of the compensated weights when the loop reaches the group."""
    weight, inputs = random_layer(8, 200, seed=3)
    scheme, stats = grid_scheme(text), _unshrunk_stats(inputs)
    assert isinstance(scheme, IntegerScheme)
    assert scheme.group_size
    size = scheme.group_size
    importance, scales = expected_importance(stats.gram), []

    def values(column: int, compensated: Tensor) -> Tensor:
        group = slice(column // size * size, None)
        grid = integer.fit_grid(compensated, scheme, importance[group][: compensated.shape[1]])
        if column % size == 0:
            scales.append(grid.scale)
        codes = torch.arange(_lowest_code(scheme), 2**scheme.bits)
        return (codes - grid.zero_point.double()) * grid.scale.double()

    quantized = gptq.quantize(weight, scheme, stats, act_order=False)

    expected = reference_gptq(weight, stats.gram, list(range(200)), size, values)
    assert torch.isclose(dequantize(quantized).double(), expected, rtol=1e-3, atol=1e-9).double().mean() > 0.97
    assert isinstance(quantized, IntegerTensor)
    assert torch.isclose(quantized.scale.float(), torch.cat(scales, 1), rtol=0.01).double().mean() > 0.9


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("text", [*SCHEMES, *VECTOR_SCHEMES])
def test_the_output_error_is_less_than_with_rtn(text: str, act_order: bool) -> None:
    """With correlated inputs errors compensate each other: at most 0.6 of the squared error of the outputs."""
    weight, inputs = random_layer(64, 512)
    scheme, stats = grid_scheme(text), input_stats(inputs)

    quantized = gptq.quantize(weight, scheme, stats, act_order)

    rounded = rtn.quantize(weight, scheme)
    assert _output_error(quantized, weight, inputs) < 0.6 * _output_error(rounded, weight, inputs)


@pytest.mark.parametrize("text", SCHEMES)
def test_uncorrelated_inputs_give_the_nearest_codes(text: str) -> None:
    """With a diagonal Hessian no column compensates another, and every value goes to the nearest code."""
    weight, _ = random_layer(8, 288)
    diagonal = torch.randn(400, 288, generator=torch.Generator().manual_seed(1)).square().sum(0)
    stats = input_stats(torch.diag(diagonal.sqrt()))

    quantized = gptq.quantize(weight, grid_scheme(text), stats)

    values = _grid_values(quantized)
    nearest = torch.stack(
        [(values(column, weight) - weight[:, column, None]).abs().amin(1) for column in range(288)], dim=1
    )
    assert torch.allclose((dequantize(quantized) - weight).abs().double(), nearest, atol=1e-7)


@pytest.mark.parametrize(
    "text",
    ["int4-g32", "int8-row", "int4-g64-asym", "q4_0", "q4_k", "q6_k", "iq4_nl", "iq4_xs", "q3_k", "q2_k"],
)
@pytest.mark.parametrize("act_order", [True, False])
def test_a_column_with_zero_inputs_changes_no_other(text: str, act_order: bool) -> None:
    """Its own weights are rounded to nearest, and the output error stays below that of rtn."""
    weight, inputs = random_layer(8, 256)
    inputs[:, [0, 17, 18, 255]] = 0
    scheme = grid_scheme(text)

    quantized = gptq.quantize(weight, scheme, input_stats(inputs), act_order)

    values = _grid_values(quantized)
    for column in (0, 17, 18, 255):
        nearest = (values(column, weight) - weight[:, column, None]).abs().amin(1)
        error = (dequantize(quantized)[:, column] - weight[:, column]).abs().double()
        assert torch.allclose(error, nearest, atol=1e-7)
    assert _output_error(quantized, weight, inputs) < _output_error(rtn.quantize(weight, scheme), weight, inputs)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 5), st.integers(1, 70), st.booleans(), st.integers(0, 99))
def test_any_shape_is_quantized(text: str, rows: int, columns: int, act_order: bool, seed: int) -> None:
    """Partial groups and blocks, one row, one column and few tokens have the layout of rtn and finite values."""
    weight, inputs = random_layer(rows, columns, seed, tokens=5)
    scheme = grid_scheme(text)

    quantized = gptq.quantize(weight, scheme, _unshrunk_stats(inputs), act_order)

    assert quantized.shape == weight.shape
    assert _layout(quantized) == _layout(rtn.quantize(weight, scheme))
    assert dequantize(quantized).isfinite().all()


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("text", SCHEMES)
def test_small_matrices_have_the_loss_of_the_loop(text: str, act_order: bool) -> None:
    """The sum of the losses of ten ragged shapes is at most that of a loop over columns with the same scales.

    One tiny matrix can be up to three times worse: scales and codes are chosen in turns, and both end in local optima.
    """
    shapes = [(1, 3), (2, 5), (4, 7), (1, 18), (3, 33), (5, 64), (2, 70), (4, 50), (5, 31), (3, 61)]

    losses = [_losses(text, act_order, *shape, seed) for seed, shape in enumerate(shapes)]

    assert sum(own for own, _ in losses) <= 1.05 * sum(loop for _, loop in losses)


def _losses(text: str, act_order: bool, rows: int, columns: int, seed: int) -> tuple[float, float]:
    """Return the output errors of gptq and of the loop over columns with the scales of gptq."""
    weight, inputs = random_layer(rows, columns, seed, tokens=5)
    stats = _unshrunk_stats(inputs)
    quantized = gptq.quantize(weight, grid_scheme(text), stats, act_order)
    loop = reference_gptq(weight, stats.gram, _order(stats.gram, act_order), columns, _grid_values(quantized))
    damped = stats.gram.double() + 0.01 * stats.gram.diagonal().double().mean() * torch.eye(columns)
    own_error, loop_error = dequantize(quantized) - weight.double(), loop - weight
    return float(((own_error @ damped) * own_error).sum()), float(((loop_error @ damped) * loop_error).sum())


def _layout(quantized: QTensor) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (part.shape, part.dtype) for name, part in tensor_parts(quantized).items()}


def _order(gram: Tensor, act_order: bool) -> list[int]:
    energy = gram.diagonal()
    return energy.argsort(descending=True, stable=True).tolist() if act_order else list(range(len(gram)))


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("text", ["int4-g32", "int8-row", "int4-g32-asym", "q4_k", "q6_k"])
def test_threads_change_no_byte(text: str, act_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One, two and three threads give the same bytes, and torch keeps its number of threads."""
    monkeypatch.setattr("mcpmq.rounding.cholesky.TILE_COLUMNS", 96)
    monkeypatch.setattr("mcpmq.rounding.gptq.CHUNK_ROWS", 20)
    weight, inputs = random_layer(70, 512)
    threads = torch.get_num_threads()
    try:
        quantized = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            quantized.append(gptq.quantize(weight, grid_scheme(text), input_stats(inputs), act_order))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)

    for other in quantized[1:]:
        assert same_bytes(other, quantized[0])


def test_the_weight_and_the_statistics_are_not_changed() -> None:
    """Callers may use both again, and may be in inference mode."""
    weight, inputs = random_layer(4, 64)
    stats = input_stats(inputs)
    before = weight.clone(), stats.gram.clone()

    with torch.inference_mode():
        quantized = gptq.quantize(weight, grid_scheme("int4-g32"), stats)

    assert torch.equal(weight, before[0])
    assert torch.equal(stats.gram, before[1])
    assert same_bytes(quantized, gptq.quantize(weight, grid_scheme("int4-g32"), stats))


def test_a_bfloat16_weight_equals_its_float32_values() -> None:
    """The dtype of the checkpoint needs no conversion by the caller."""
    weight, inputs = random_layer(4, 64)
    weight = weight.bfloat16()

    quantized = gptq.quantize(weight, grid_scheme("int4-g32"), input_stats(inputs))

    assert same_bytes(quantized, gptq.quantize(weight.float(), grid_scheme("int4-g32"), input_stats(inputs)))


def test_missing_or_unusable_statistics_are_an_error() -> None:
    """No statistics, those of another layer, and inputs that are all zero or not finite: the error has the numbers."""
    weight, inputs = random_layer(4, 64)
    scheme = grid_scheme("int4-g32")
    with pytest.raises(DatasetError, match="`gptq` needs input statistics of 64 columns, got none"):
        gptq.quantize(weight, scheme, None)
    with pytest.raises(DatasetError, match="input statistics of 64 columns, got 32 columns"):
        gptq.quantize(weight, scheme, input_stats(inputs[:, :32]))
    with pytest.raises(DatasetError, match="all zero"):
        gptq.quantize(weight, scheme, input_stats(torch.zeros(10, 64)))
    with pytest.raises(DatasetError, match="not finite"):
        gptq.quantize(weight, scheme, input_stats(inputs * torch.inf))
