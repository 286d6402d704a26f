"""Packing for ONNX Runtime, compared with the definition of the layout and with ONNX Runtime itself."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mcpmq.formats.onnx.block_quant import unsupported_table_reason
from mcpmq.formats.onnx.external_data import StoredArray
from mcpmq.formats.onnx.packing import CODES_PER_STRIPE, PackedWeight, pack_for_gather, pack_for_matmul
from mcpmq.grids import dequantize
from mcpmq.scheme import GROUP_SIZES, IntegerScheme
from tests.onnx_tools import random_weight, run_lookup, run_matmul

EVERY_SCHEME = [
    IntegerScheme(bits, group, symmetric)
    for bits in (4, 8)
    for group in (*GROUP_SIZES, None)
    for symmetric in (True, False)
]
SUPPORTED_TABLES = [
    (scheme, columns)
    for scheme in EVERY_SCHEME
    for columns in (64, 144, 300)
    if unsupported_table_reason(scheme, columns) is None
]


def whole(array: StoredArray) -> NDArray[np.generic]:
    """Concatenate the parts of an array and check its shape and dtype."""
    joined = np.concatenate(list(array.parts))
    assert joined.shape == array.shape
    assert joined.dtype == array.dtype.numpy()
    return joined


def code_at(packed: NDArray[np.generic], index: int, bits: int) -> int:
    """Return the `index`-th code of packed bytes, low bits first, by the definition of the layout."""
    byte = int(packed[index * bits // 8])
    return byte >> index * bits % 8 & (1 << bits) - 1


def values(packed: PackedWeight, columns: int) -> NDArray[np.float32]:
    """Dequantize by the definition of the operators: (code - zero point of the block) * scale of the block."""
    bits, codes, scales = packed.bits, whole(packed.codes), whole(packed.scales)
    zeros = whole(packed.zeros) if packed.zeros else None
    found = np.empty((len(codes), columns), np.float32)
    for row, column in np.ndindex(*found.shape):
        block = column // packed.block_size
        zero = 2 ** (bits - 1) if zeros is None else code_at(zeros[row], block, bits)
        found[row, column] = (code_at(codes[row].reshape(-1), column, bits) - zero) * scales[row, block]
    return found


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EVERY_SCHEME), st.integers(1, 4), st.integers(1, 300), st.booleans())
def test_packed_bytes_dequantize_to_the_weight(scheme: IntegerScheme, rows: int, columns: int, lookup: bool) -> None:
    """Packed bytes have exactly the values of the weight, for all bits, groups and partial blocks."""
    weight = random_weight(scheme, rows, columns)
    packed = (pack_for_gather if lookup else pack_for_matmul)(scheme, weight.shape, [weight])
    np.testing.assert_array_equal(values(packed, columns), dequantize(weight).numpy())


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(EVERY_SCHEME), st.integers(2, 9), st.integers(1, 70), st.integers(1, 5), st.booleans())
def test_chunks_of_rows_have_the_bytes_of_the_whole_weight(
    scheme: IntegerScheme, rows: int, columns: int, step: int, lookup: bool
) -> None:
    """The chunks are read once, while the codes are written; scales and zero points follow."""
    weight, pack = random_weight(scheme, rows, columns), pack_for_gather if lookup else pack_for_matmul
    chunks = (weight.slice_rows(slice(row, row + step)) for row in range(0, rows, step))

    found, expected = pack(scheme, weight.shape, chunks), pack(scheme, weight.shape, [weight])

    for one, other in ((found.codes, expected.codes), (found.scales, expected.scales), (found.zeros, expected.zeros)):
        assert (one is None) == (other is None)
        if one and other:
            np.testing.assert_array_equal(whole(one), whole(other))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_partial_block_is_padded_with_the_code_of_zero(bits: int) -> None:
    """The columns after the last one contain 2^(bits - 1)."""
    scheme = IntegerScheme(bits, 32)
    codes = whole(pack_for_matmul(scheme, (3, 33), [random_weight(scheme, 3, 33)]).codes)
    assert {code_at(row.reshape(-1), column, bits) for row in codes for column in range(33, 64)} == {2 ** (bits - 1)}


@pytest.mark.parametrize("columns", [64, 144, 300])
@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=str)
def test_matmul_nbits_multiplies_by_the_dequantized_weight(scheme: IntegerScheme, columns: int, tmp_path: Path) -> None:
    """MatMulNBits computes x @ dequantize(weight).T plus a bias, for whole and partial blocks."""
    weight = random_weight(scheme, 48, columns)
    value, bias = np.random.default_rng(0).standard_normal((5, columns)).astype(np.float32), torch.ones(48)
    factor = dequantize(weight).numpy().T.astype(np.float64)
    magnitude = np.abs(value) @ np.abs(factor) + 1  # float32 rounding is relative to the summands
    error = np.abs(run_matmul(tmp_path, weight, value, bias) - (value @ factor + 1))
    assert (error / magnitude).max() < 2e-6


@pytest.mark.parametrize(("scheme", "columns"), SUPPORTED_TABLES, ids=str)
def test_gather_returns_rows_of_the_dequantized_table(scheme: IntegerScheme, columns: int, tmp_path: Path) -> None:
    """GatherBlockQuantized returns the rows of dequantize(table), for every supported table."""
    weight, indices = random_weight(scheme, 48, columns), np.array([47, 0, 13, 13])
    found = run_lookup(tmp_path, weight, indices)
    np.testing.assert_allclose(found, dequantize(weight).numpy()[indices], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floats_keep_their_dtype_and_values(dtype: torch.dtype, tmp_path: Path) -> None:
    """A float weight has the size of its dtype on disk, and ONNX Runtime computes with exactly its values."""
    weight, value = torch.randn(16, 40).to(dtype), np.eye(40, dtype=np.float32)
    np.testing.assert_array_equal(run_matmul(tmp_path, weight, value), weight.float().numpy().T)
    assert (tmp_path / "one.onnx_data").stat().st_size == weight.nbytes
    np.testing.assert_array_equal(run_lookup(tmp_path, weight, np.array([3, 15])), weight.float().numpy()[[3, 15]])


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_memory_is_bounded(bits: int) -> None:
    """The peak memory of packing is below four stripes, for a weight of sixteen."""
    rows = 16 * CODES_PER_STRIPE // 1000
    scheme = IntegerScheme(bits, 128)
    packed = pack_for_matmul(scheme, (rows, 1000), [random_weight(scheme, rows, 1000)])
    tracemalloc.start()
    nbytes = sum(part.nbytes for part in packed.codes.parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert nbytes >= rows * 1000 * bits // 8
    assert peak < 4 * CODES_PER_STRIPE
