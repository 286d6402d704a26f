"""NF4 and FP4 against the quantizer of bitsandbytes."""

import bitsandbytes.functional as bitsandbytes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.grids import codebook, dequantize
from mcpmq.scheme import CODEBOOK_GROUP_SIZE, CODEBOOKS, CodebookScheme


def random_weight(rows: int, groups: int, seed: int) -> torch.Tensor:
    """Return a random weight with a group of zeros and one large value."""
    weight = torch.randn(rows, groups * CODEBOOK_GROUP_SIZE, generator=torch.Generator().manual_seed(seed)) * 0.02
    weight[0, :CODEBOOK_GROUP_SIZE] = 0
    weight[-1, -1] = 1
    return weight.bfloat16()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CODEBOOKS), st.integers(2, 40), st.integers(1, 9), st.integers(0, 99))
def test_codes_and_scales_equal_those_of_bitsandbytes(name: str, rows: int, groups: int, seed: int) -> None:
    """Codes are equal for any chunks of rows; codes of scales differ by at most one, or by 1e-4 in value.

    bitsandbytes on a CPU selects the neighbor when two values of the dynamic map are nearly equally near.
    """
    weight = random_weight(rows, groups, seed)
    ours = codebook.quantize(weight.split(7), rows, CodebookScheme(name))
    packed, state = bitsandbytes.quantize_4bit(weight, blocksize=64, quant_type=name, compress_statistics=True)
    theirs = torch.stack([packed >> 4, packed & 15], -1).reshape(weight.shape)
    assert ours.double_quant is not None

    assert torch.equal(ours.codes, theirs)
    assert ours.double_quant.offset == pytest.approx(state.offset.item(), rel=1e-6)
    codes, levels = (ours.double_quant.codes.flatten().int(), state.absmax.int()), codebook.dynamic_map()
    difference = (levels[codes[0]] - levels[codes[1]]).abs()
    assert (((codes[0] - codes[1]).abs() <= 1) | (difference < 1e-4)).all()
    torch.testing.assert_close(ours.double_quant.absmax, state.state2.absmax, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", CODEBOOKS)
def test_code_values_equal_those_of_bitsandbytes(name: str) -> None:
    """Both tables are equal bit for bit, because artifacts store them."""
    assert torch.equal(codebook.code_values(name), bitsandbytes.get_4bit_type(name, device="cpu"))
    assert torch.equal(codebook.dynamic_map(), bitsandbytes.create_dynamic_map())


def test_zeros_stay_zeros() -> None:
    """A scale of zero gives neither infinity nor NaN."""
    weight = codebook.quantize([torch.zeros(3, 128)], 3, CodebookScheme("nf4"))

    assert torch.equal(dequantize(weight), torch.zeros(3, 128))


@pytest.mark.parametrize(("name", "largest"), [("nf4", 0.1), ("fp4", 0.14)])
def test_the_relative_error_on_normal_weights_is_that_of_the_data_type(name: str, largest: float) -> None:
    """About 9 % for NF4 and 12 % for FP4 (root mean square)."""
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    error = dequantize(codebook.quantize([weight], 64, CodebookScheme(name))) - weight

    assert error.norm() / weight.norm() < largest
