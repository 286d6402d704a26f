"""Pieces of a weight put together are the weight."""

import pytest
import torch

from mcpmq.grids import dequantize
from mcpmq.qtensor import QTensor
from mcpmq.rounding import ROUNDERS
from mcpmq.scheme import GgmlScheme, IntegerScheme, parse_scheme


@pytest.mark.parametrize("text", ["int4-g32", "int4-g16-asym", "int8-row", "q5_k"])
@pytest.mark.parametrize("cuts", [[7], [1, 6], [3, 3, 1]])
def test_stacked_pieces_are_the_whole(text: str, cuts: list[int]) -> None:
    """Codes, scales and zero points land in their rows."""
    scheme = parse_scheme(text)
    assert isinstance(scheme, IntegerScheme | GgmlScheme)
    weight = torch.randn(7, 256, generator=torch.Generator().manual_seed(0))
    whole = ROUNDERS["rtn"](weight, scheme)

    stacked = QTensor.stacked((ROUNDERS["rtn"](rows, scheme) for rows in weight.split(cuts)), 7)

    assert stacked.shape == whole.shape
    assert torch.equal(stacked.codes, whole.codes)
    assert torch.equal(dequantize(stacked), dequantize(whole))
