"""Rounding to nearest on grids that calibration inputs decide: less error on them, the same on any threads."""

import pytest
import torch

from mcpmq.errors import CalibrationError
from mcpmq.execution.chunked_matmul import torch_threads
from mcpmq.grids import dequantize
from mcpmq.rounding import ROUNDERS
from mcpmq.rounding.stats import LayerStats
from tests.rounding.oracle import sample_layer, scheme_of, stats_of

SCHEMES = ["int4-g32", "int4-row", "int4-g32-asym", "int8-g64", "q4_0", "q4_k", "iq4_nl", "q6_k"]


def _weighted_error(weight: torch.Tensor, found: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(((found - weight).square() * inputs.square().sum(0)).sum())


@pytest.mark.parametrize("text", SCHEMES)
def test_columns_that_matter_err_less(text: str) -> None:
    """The error weighted by the squares of the inputs is less than that of grids that cover the weight."""
    weight, inputs = sample_layer(32, 512)
    scheme, stats = scheme_of(text), stats_of(inputs)

    found, blind = ROUNDERS["importance"](weight, scheme, stats), ROUNDERS["rtn"](weight, scheme, None)

    assert _weighted_error(weight, dequantize(found), inputs) < _weighted_error(weight, dequantize(blind), inputs)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3, 1.0])
def test_a_value_is_the_nearest_of_its_grid(share: float) -> None:
    """Every code of a symmetric group is that of its own value, whatever the columns are worth."""
    weight, inputs = sample_layer(8, 64, seed=int(10 * share))
    found = ROUNDERS["importance"](weight, scheme_of("int4-g32"), stats_of(inputs * share))
    assert found.scale is not None
    scale = found.scale.float().repeat_interleave(32, 1)
    choices = (torch.arange(16) - 8) * scale[..., None]

    expected = (choices - weight[..., None]).abs().amin(-1)

    torch.testing.assert_close((dequantize(found) - weight).abs(), expected)


@pytest.mark.parametrize("text", ["int4-g32", "int8-row", "q4_k", "q8_0"])
def test_dead_columns_are_rounded_to_nearest_by_their_own_weights(text: str) -> None:
    """A span of columns whose inputs were all zero gets the grid that covers it: near the weight, and never nothing."""
    weight, inputs = sample_layer(16, 512)
    inputs[:, :256] = 0
    found = dequantize(ROUNDERS["importance"](weight, scheme_of(text), stats_of(inputs)))[:, :256]

    assert found.isfinite().all()
    assert (found - weight[:, :256]).norm() < 0.2 * weight[:, :256].norm()


def test_threads_and_chunks_change_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows share nothing."""
    weight, inputs = sample_layer(40, 256)
    whole = ROUNDERS["importance"](weight, scheme_of("int4-g32"), stats_of(inputs))
    monkeypatch.setattr("mcpmq.rounding.rtn.CHUNK_WEIGHTS", 600)
    with torch_threads(4):
        chunked = ROUNDERS["importance"](weight, scheme_of("int4-g32"), stats_of(inputs))

    assert torch.equal(chunked.codes, whole.codes)
    assert torch.equal(dequantize(chunked), dequantize(whole))


@pytest.mark.parametrize("stats", [None, stats_of(torch.ones(3, 64))])
def test_statistics_of_another_weight_are_refused(stats: LayerStats | None) -> None:
    """Nothing seen, or inputs of another width."""
    with pytest.raises(CalibrationError, match="for a weight of 32 columns"):
        ROUNDERS["importance"](torch.ones(2, 32), scheme_of("int8-row"), stats)
