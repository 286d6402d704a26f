"""NF4 and FP4 against bitsandbytes' own quantizer and dequantizer."""

import bitsandbytes.functional as bitsandbytes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.grids import codebook, dequantize
from mcpmq.scheme import CODEBOOK_COLUMNS, CODEBOOKS, CodebookScheme


def random_weight(rows: int, groups: int, seed: int) -> torch.Tensor:
    """Values like those of a weight, with a group of zeros and a large value among them."""
    weight = torch.randn(rows, groups * CODEBOOK_COLUMNS, generator=torch.Generator().manual_seed(seed)) * 0.02
    weight[0, :CODEBOOK_COLUMNS] = 0
    weight[-1, -1] = 1
    return weight.bfloat16()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CODEBOOKS), st.integers(2, 40), st.integers(1, 9), st.integers(0, 99))
def test_codes_and_scales_are_those_of_bitsandbytes(name: str, rows: int, groups: int, seed: int) -> None:
    """The same codes and scales of scales, in any number of pieces; a code of a scale is at most its neighbour, which
    bitsandbytes takes on a CPU where two are nearly as near, or is equal to a ten-thousandth: next to zero many are."""
    weight = random_weight(rows, groups, seed)
    ours = codebook.quantize(weight.split(7), rows, CodebookScheme(name))
    packed, state = bitsandbytes.quantize_4bit(weight, blocksize=64, quant_type=name, compress_statistics=True)
    theirs = torch.stack([packed >> 4, packed & 15], -1).reshape(weight.shape)
    assert ours.packed_scale is not None

    assert torch.equal(ours.codes, theirs)
    assert ours.packed_scale.offset == pytest.approx(state.offset.item(), rel=1e-6)
    codes, levels = (ours.packed_scale.codes.flatten().int(), state.absmax.int()), codebook.scale_table()
    apart = (levels[codes[0]] - levels[codes[1]]).abs()
    assert (((codes[0] - codes[1]).abs() <= 1) | (apart < 1e-4)).all()
    torch.testing.assert_close(ours.packed_scale.largest, state.state2.absmax, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", CODEBOOKS)
def test_tables_are_those_of_bitsandbytes(name: str) -> None:
    """Bit for bit: they are stored in every artifact."""
    assert torch.equal(codebook.table(name), bitsandbytes.get_4bit_type(name, device="cpu"))
    assert torch.equal(codebook.scale_table(), bitsandbytes.create_dynamic_map())


def test_what_is_all_zeros_stays_so() -> None:
    """No scale is divided by, none becomes infinite."""
    weight = codebook.quantize([torch.zeros(3, 128)], 3, CodebookScheme("nf4"))

    assert torch.equal(dequantize(weight), torch.zeros(3, 128))


@pytest.mark.parametrize(("name", "largest"), [("nf4", 0.1), ("fp4", 0.14)])
def test_the_error_is_what_the_grid_has_on_normal_values(name: str, largest: float) -> None:
    """About 9 % for NF4 and 12 % for FP4, in the root of the mean square."""
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    error = dequantize(codebook.quantize([weight], 64, CodebookScheme(name))) - weight

    assert error.norm() / weight.norm() < largest
