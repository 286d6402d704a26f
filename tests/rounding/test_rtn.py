"""Round to nearest on every kind of grid."""

import pytest
import torch

from mcpmq.grids import dequantize
from mcpmq.rounding import ROUNDING_FUNCTIONS
from mcpmq.rounding.rtn import split_rows
from tests.rounding.oracle import grid_scheme, same_bytes


@pytest.mark.parametrize("text", ["int4-g32", "int8-row", "int4-g64-asym", "q4_k", "q8_0", "iq4_nl"])
def test_weights_are_rounded_on_every_kind_of_grid(text: str) -> None:
    """The result has the scheme and dequantizes near the weight."""
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    scheme = grid_scheme(text)

    rounded = ROUNDING_FUNCTIONS["rtn"](weight, scheme, None)

    assert rounded.scheme == scheme
    assert (dequantize(rounded) - weight).norm() < 0.15 * weight.norm()


@pytest.mark.parametrize("text", ["int4-g32", "int8-g64-asym", "q4_k"])
def test_the_chunk_size_changes_no_byte(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are independent, so chunks of any number of rows give the same bytes."""
    weight = torch.randn(7, 256, generator=torch.Generator().manual_seed(0))
    scheme = grid_scheme(text)
    whole = ROUNDING_FUNCTIONS["rtn"](weight, scheme, None)

    monkeypatch.setattr("mcpmq.rounding.rtn.CHUNK_WEIGHTS", 600)
    chunked = ROUNDING_FUNCTIONS["rtn"](weight, scheme, None)

    assert same_bytes(chunked, whole)


def test_chunks_have_about_half_a_million_weights() -> None:
    """2^19 weights of 1000 columns are 524 rows, which 64 divides into 512; long rows have chunks of at most 2^20."""
    assert [len(rows) for rows in split_rows(torch.empty(1).expand(1000, 1000))] == [512, 488]
    assert [len(rows) for rows in split_rows(torch.empty(1).expand(100, 12_000))] == [64, 36]
    assert [len(rows) for rows in split_rows(torch.empty(1).expand(2, 600_000))] == [1, 1]
