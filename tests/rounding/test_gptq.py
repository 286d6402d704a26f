"""GPTQ on every grid against the column loop of its paper, and against rounding to nearest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcpmq.errors import CalibrationError
from mcpmq.grids import dequantize, ggml, integer
from mcpmq.qtensor import QTensor
from mcpmq.rounding import ROUNDERS, gptq
from mcpmq.scheme import GgmlScheme, IntegerScheme
from tests.rounding.oracle import SCHEMES, Values, brute_force, importance_of, sample_layer, scheme_of, stats_of

Scheme = IntegerScheme | GgmlScheme


def _codes(quantized: QTensor) -> Tensor:
    if isinstance(quantized.scheme, GgmlScheme):
        return ggml.codes_of(quantized.codes, quantized.scheme)[:, : quantized.columns]
    return quantized.codes


def _values_of(quantized: QTensor) -> Values:
    """Every value that each column may take on the grid that was chosen; found by dequantizing every code."""
    scheme, shape = quantized.scheme, _codes(quantized).shape
    if isinstance(scheme, GgmlScheme):
        bits = {"q8_0": 8, "q5_0": 5, "q5_k": 5, "q6_k": 6}.get(scheme.type, 4)
        padded = (shape[0], -(-shape[1] // scheme.block_columns) * scheme.block_columns)
        codes = range(1 if scheme.type == "q8_0" else 0, 2**bits)
        filled = [ggml.with_codes(quantized.codes, torch.full(padded, code, dtype=torch.uint8), scheme)
                  for code in codes]  # fmt: skip
        tensors = [QTensor(scheme, shape[1], blocks) for blocks in filled]
    else:
        codes = range(1 if scheme.symmetric and scheme.bits == 8 else 0, 2**scheme.bits)
        tensors = [QTensor(scheme, shape[1], torch.full(shape, code, dtype=torch.uint8), quantized.scale,
                           quantized.zero) for code in codes]  # fmt: skip
    choices = torch.stack([dequantize(tensor) for tensor in tensors], dim=-1).double()
    return lambda column, reached: choices[:, column]


def _output_error(quantized: QTensor, weight: Tensor, inputs: Tensor) -> float:
    return float((inputs @ (dequantize(quantized) - weight).T).square().sum())


@pytest.mark.parametrize("by_activation", [True, False])
@pytest.mark.parametrize("text", SCHEMES)
def test_codes_are_those_of_the_column_loop(text: str, by_activation: bool) -> None:
    """On the grid that was fitted, every column gets the code that the paper's loop gives it, but for rare ties."""
    weight, inputs = sample_layer(16, 304)
    stats, scheme = stats_of(inputs), scheme_of(text)

    found = gptq.quantize(weight, scheme, stats, by_activation)

    expected = brute_force(weight, stats.gram, _order(stats.gram, by_activation), 304, _values_of(found))
    same = torch.isclose(dequantize(found).double(), expected, rtol=1e-5, atol=1e-9)
    assert same.double().mean() > 0.99


@pytest.mark.parametrize("text", ["int4-g32", "int8-g64", "int4-g32-asym", "int4-g128"])
def test_groups_are_fitted_to_what_errors_have_made_of_them(text: str) -> None:
    """In the columns' own order the scales are those of the weights at the moment the loop reaches the group."""
    weight, inputs = sample_layer(8, 200, seed=3)
    scheme, stats = scheme_of(text), stats_of(inputs)
    assert isinstance(scheme, IntegerScheme)
    importance, scales = importance_of(stats.gram), []

    def values(column: int, reached: Tensor) -> Tensor:
        group = slice(column // scheme.group_size * scheme.group_size, None)
        grid = integer.fit(reached, scheme, importance[group][: reached.shape[1]])
        if column % scheme.group_size == 0:
            scales.append(grid.scale)
        codes = torch.arange(1 if scheme.symmetric and scheme.bits == 8 else 0, 2**scheme.bits)
        return (codes - grid.zero.double()) * grid.scale.double()

    found = gptq.quantize(weight, scheme, stats, by_activation=False)

    expected = brute_force(weight, stats.gram, list(range(200)), scheme.group_size, values)
    assert torch.isclose(dequantize(found).double(), expected, rtol=1e-3, atol=1e-9).double().mean() > 0.97
    assert found.scale is not None
    assert torch.isclose(found.scale.float(), torch.cat(scales, 1), rtol=0.01).double().mean() > 0.9


@pytest.mark.parametrize("by_activation", [True, False])
@pytest.mark.parametrize("text", SCHEMES)
def test_outputs_are_closer_than_with_rounding_to_nearest(text: str, by_activation: bool) -> None:
    """Correlated inputs let errors make up for one another: at most 0.6 of the squared error of the outputs."""
    weight, inputs = sample_layer(64, 512)
    scheme, stats = scheme_of(text), stats_of(inputs)

    ours = gptq.quantize(weight, scheme, stats, by_activation)

    assert _output_error(ours, weight, inputs) < 0.6 * _output_error(
        ROUNDERS["rtn"](weight, scheme, None), weight, inputs
    )


@pytest.mark.parametrize("text", SCHEMES)
def test_inputs_that_are_not_correlated_leave_nothing_to_make_up_for(text: str) -> None:
    """With a diagonal Gram matrix every value goes to the nearest on the grid."""
    weight, _ = sample_layer(8, 288)
    diagonal = torch.randn(400, 288, generator=torch.Generator().manual_seed(1)).square().sum(0)
    stats = stats_of(torch.diag(diagonal.sqrt()))

    found = gptq.quantize(weight, scheme_of(text), stats)

    values = _values_of(found)
    nearest = torch.stack(
        [(values(column, weight) - weight[:, column, None]).abs().amin(1) for column in range(288)], dim=1
    )
    assert torch.allclose((dequantize(found) - weight).abs().double(), nearest, atol=1e-7)


@pytest.mark.parametrize("text", ["int4-g32", "int8-row", "int4-g64-asym", "q4_0", "q4_k", "q6_k", "iq4_nl"])
@pytest.mark.parametrize("by_activation", [True, False])
def test_a_column_that_saw_nothing_changes_no_other(text: str, by_activation: bool) -> None:
    """Its own weights are rounded to the nearest; the outputs are as good as without it."""
    weight, inputs = sample_layer(8, 256)
    inputs[:, [0, 17, 18, 255]] = 0
    scheme = scheme_of(text)

    found = gptq.quantize(weight, scheme, stats_of(inputs), by_activation)

    values = _values_of(found)
    for column in (0, 17, 18, 255):
        nearest = (values(column, weight) - weight[:, column, None]).abs().amin(1)
        assert torch.allclose((dequantize(found)[:, column] - weight[:, column]).abs().double(), nearest, atol=1e-7)
    assert _output_error(found, weight, inputs) < _output_error(ROUNDERS["rtn"](weight, scheme, None), weight, inputs)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 5), st.integers(1, 70), st.booleans(), st.integers(0, 99))
def test_any_shape_is_rounded(text: str, rows: int, columns: int, by_activation: bool, seed: int) -> None:
    """Ragged groups and blocks, one row, one column, few tokens: laid out as ever, as good as the loop."""
    weight, inputs = sample_layer(rows, columns, seed, tokens=5)
    stats, scheme = stats_of(inputs), scheme_of(text)

    found = gptq.quantize(weight, scheme, stats, by_activation)

    plain = ROUNDERS["rtn"](weight, scheme, None)
    assert found.shape == weight.shape
    for ours, theirs in ((found.codes, plain.codes), (found.scale, plain.scale), (found.zero, plain.zero)):
        assert (ours is None) == (theirs is None)
        assert ours is None or (theirs is not None and ours.shape == theirs.shape and ours.dtype == theirs.dtype)
    loop = brute_force(weight, stats.gram, _order(stats.gram, by_activation), columns, _values_of(found))
    damped = stats.gram.double() + 0.01 * stats.gram.diagonal().double().mean() * torch.eye(columns)
    losses = [((error @ damped) * error).sum() for error in (dequantize(found) - weight.double(), loop - weight)]
    assert losses[0] <= 1.5 * losses[1] + 1e-9


def _order(gram: Tensor, by_activation: bool) -> list[int]:
    energy = gram.diagonal()
    return energy.argsort(descending=True, stable=True).tolist() if by_activation else list(range(len(gram)))


@pytest.mark.parametrize("by_activation", [True, False])
@pytest.mark.parametrize("text", ["int4-g32", "int8-row", "int4-g32-asym", "q4_k", "q6_k"])
def test_bytes_do_not_depend_on_the_number_of_threads(
    text: str, by_activation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread, two and three: the same bytes; and torch is left with as many as it had."""
    monkeypatch.setattr("mcpmq.rounding.cholesky.TILE", 96)
    monkeypatch.setattr("mcpmq.rounding.gptq.CHUNK_ROWS", 20)
    weight, inputs = sample_layer(70, 512)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(gptq.quantize(weight, scheme_of(text), stats_of(inputs), by_activation))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)

    for other in found[1:]:
        assert torch.equal(other.codes, found[0].codes)
        assert torch.equal(dequantize(other), dequantize(found[0]))


def test_neither_the_weight_nor_the_statistics_are_touched() -> None:
    """Callers may use both again, and may be in inference mode."""
    weight, inputs = sample_layer(4, 64)
    stats = stats_of(inputs)
    before = weight.clone(), stats.gram.clone()

    with torch.inference_mode():
        found = gptq.quantize(weight, scheme_of("int4-g32"), stats)

    assert torch.equal(weight, before[0])
    assert torch.equal(stats.gram, before[1])
    assert torch.equal(found.codes, gptq.quantize(weight, scheme_of("int4-g32"), stats).codes)


def test_a_bfloat16_weight_is_rounded_as_its_values() -> None:
    """What checkpoints hold needs no conversion."""
    weight, inputs = sample_layer(4, 64)
    weight = weight.bfloat16()

    found = gptq.quantize(weight, scheme_of("int4-g32"), stats_of(inputs))

    assert torch.equal(found.codes, gptq.quantize(weight.float(), scheme_of("int4-g32"), stats_of(inputs)).codes)


def test_a_weight_without_statistics_is_refused() -> None:
    """None at all, another layer's, and inputs that were all zero: an error says which."""
    weight, inputs = sample_layer(4, 64)
    scheme = scheme_of("int4-g32")
    with pytest.raises(CalibrationError, match="saw nothing for a weight of 64 columns"):
        gptq.quantize(weight, scheme, None)
    with pytest.raises(CalibrationError, match="inputs of 32 columns for a weight of 64"):
        gptq.quantize(weight, scheme, stats_of(inputs[:, :32]))
    with pytest.raises(CalibrationError, match="all zero"):
        gptq.quantize(weight, scheme, stats_of(torch.zeros(10, 64)))
    with pytest.raises(CalibrationError, match="not finite"):
        gptq.quantize(weight, scheme, stats_of(inputs * torch.inf))
