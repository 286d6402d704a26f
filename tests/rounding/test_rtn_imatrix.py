"""Round to nearest on grids chosen by input statistics: less weighted error, and the same bytes on any threads."""

import pytest
import torch

from mcpmq.errors import DatasetError
from mcpmq.grids import dequantize
from mcpmq.qtensor import IntegerTensor
from mcpmq.rounding import ROUNDING_FUNCTIONS, rtn_imatrix
from mcpmq.rounding.stats import InputStats
from mcpmq.system.torch_threads import torch_threads
from tests.rounding.oracle import grid_scheme, input_stats, random_layer, same_bytes

SCHEMES = [
    "int4-g32",
    "int4-row",
    "int4-g32-asym",
    "int8-g64",
    "q4_0",
    "q4_k",
    "iq4_nl",
    "q6_k",
    "iq4_xs",
    "q3_k",
    "q2_k",
    "iq3_s",
]


def _weighted_error(weight: torch.Tensor, quantized: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(((quantized - weight).square() * inputs.square().sum(0)).sum())


@pytest.mark.parametrize("text", SCHEMES)
def test_the_weighted_error_is_less_than_with_rtn(text: str) -> None:
    """The error weighted by the squares of the inputs is less than on grids that cover the full range."""
    weight, inputs = random_layer(32, 512)
    scheme = grid_scheme(text)

    quantized = rtn_imatrix.quantize(weight, scheme, input_stats(inputs))

    rounded = ROUNDING_FUNCTIONS["rtn"](weight, scheme, None)
    assert _weighted_error(weight, dequantize(quantized), inputs) < _weighted_error(weight, dequantize(rounded), inputs)


@pytest.mark.parametrize("factor", [0.9, 0.5, 0.3, 1.0])
def test_codes_are_the_nearest_on_their_grid(factor: float) -> None:
    """Importance chooses the grid only; every value still goes to the nearest code."""
    weight, inputs = random_layer(8, 64, seed=int(10 * factor))
    quantized = rtn_imatrix.quantize(weight, grid_scheme("int4-g32"), input_stats(inputs * factor))
    assert isinstance(quantized, IntegerTensor)
    choices = (torch.arange(16) - 8) * quantized.scale.float().repeat_interleave(32, 1)[..., None]

    expected = (choices - weight[..., None]).abs().amin(-1)

    torch.testing.assert_close((dequantize(quantized) - weight).abs(), expected)


@pytest.mark.parametrize("text", ["int4-g32", "int8-row", "q4_k", "q8_0"])
def test_columns_with_zero_inputs_are_rounded_on_the_full_range(text: str) -> None:
    """Groups whose inputs were all zero get the grid that covers them: near the weight and finite."""
    weight, inputs = random_layer(16, 512)
    inputs[:, :256] = 0
    values = dequantize(rtn_imatrix.quantize(weight, grid_scheme(text), input_stats(inputs)))[:, :256]

    assert values.isfinite().all()
    assert (values - weight[:, :256]).norm() < 0.2 * weight[:, :256].norm()


def test_threads_and_chunks_change_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are independent, so any threads and chunks give the same bytes."""
    weight, inputs = random_layer(40, 256)
    whole = rtn_imatrix.quantize(weight, grid_scheme("int4-g32"), input_stats(inputs))
    monkeypatch.setattr("mcpmq.rounding.rtn.CHUNK_WEIGHTS", 600)
    with torch_threads(4):
        chunked = rtn_imatrix.quantize(weight, grid_scheme("int4-g32"), input_stats(inputs))

    assert same_bytes(chunked, whole)


@pytest.mark.parametrize(("stats", "found"), [(None, "none"), (input_stats(torch.ones(3, 64)), "64 columns")])
def test_missing_or_wrong_statistics_are_an_error(stats: InputStats | None, found: str) -> None:
    """Statistics must have the columns of the weight; the error has both numbers."""
    with pytest.raises(DatasetError, match=f"`rtn-imatrix` needs input statistics of 32 columns, got {found}"):
        rtn_imatrix.quantize(torch.ones(2, 32), grid_scheme("int8-row"), stats)
