"""Rows of quantized weights are sliced and concatenated without loss."""

import pytest
import torch

from mcpmq.grids import codebook, dequantize
from mcpmq.qtensor import concat_rows
from mcpmq.rounding import rtn
from mcpmq.scheme import CodebookScheme
from tests.rounding.oracle import grid_scheme, same_bytes


@pytest.mark.parametrize("text", ["int4-g32", "int4-g16-asym", "int8-row", "q5_k"])
@pytest.mark.parametrize("sizes", [[7], [1, 6], [3, 3, 1]])
def test_concatenated_chunks_equal_the_whole(text: str, sizes: list[int]) -> None:
    """Codes, scales and zero points of every chunk are in their rows."""
    scheme = grid_scheme(text)
    weight = torch.randn(7, 256, generator=torch.Generator().manual_seed(0))
    whole = rtn.quantize(weight, scheme)

    joined = concat_rows((rtn.quantize(rows, scheme) for rows in weight.split(sizes)), 7)

    assert joined.shape == whole.shape == (7, 256)
    assert same_bytes(joined, whole)


@pytest.mark.parametrize("text", ["int4-g32", "int8-g64-asym", "q4_k"])
def test_sliced_rows_have_the_values_of_the_whole(text: str) -> None:
    """A slice dequantizes to the same rows as the whole weight."""
    weight = rtn.quantize(torch.randn(7, 256, generator=torch.Generator().manual_seed(0)), grid_scheme(text))

    assert torch.equal(dequantize(weight.slice_rows(slice(2, 5))), dequantize(weight)[2:5])


def test_sliced_rows_of_a_codebook_drop_the_stored_scales() -> None:
    """Double-quantized scales continue from row to row, so only the whole weight has them."""
    weight = codebook.quantize(
        [torch.randn(6, 128, generator=torch.Generator().manual_seed(1))], 6, CodebookScheme("fp4")
    )

    rows = weight.slice_rows(slice(1, 4))

    assert rows.double_quant is None
    assert torch.equal(dequantize(rows), dequantize(weight)[1:4])
