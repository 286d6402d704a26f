"""Codes in ONNX Runtime's layouts, against the layout's definition spelled out and against the runtime itself."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mcpmq.formats.onnx.block_quant import table_refusal
from mcpmq.formats.onnx.external_data import StoredArray
from mcpmq.formats.onnx.packing import STRIPE_CODES, PackedWeight, for_lookup, for_product
from mcpmq.grids import dequantize
from mcpmq.scheme import GROUP_SIZES, IntegerScheme
from tests.onnx_tools import random_weight, run_lookup, run_product

EVERY_SCHEME = [
    IntegerScheme(bits, group, symmetric)
    for bits in (4, 8)
    for group in (*GROUP_SIZES, None)
    for symmetric in (True, False)
]
HELD_TABLES = [
    (scheme, columns) for scheme in EVERY_SCHEME for columns in (64, 144, 300) if table_refusal(scheme, columns) is None
]


def whole(array: StoredArray) -> NDArray[np.generic]:
    """All parts of a stored array, which must have the shape and dtype it says."""
    joined = np.concatenate(list(array.parts))
    assert joined.shape == array.shape
    assert joined.dtype == array.dtype.numpy()
    return joined


def code_at(packed: NDArray[np.generic], index: int, bits: int) -> int:
    """The `index`-th code of packed bytes, low bits first: the layout's definition."""
    return int(packed[index * bits // 8]) >> (index * bits % 8) & (2**bits - 1)


def values(packed: PackedWeight, columns: int) -> NDArray[np.float32]:
    """Every weight as the operators define it: (code - zero point of its block) * scale of its block."""
    bits, codes, scales = packed.bits, whole(packed.codes), whole(packed.scales)
    zeros = whole(packed.zeros) if packed.zeros else None
    found = np.empty((len(codes), columns), np.float32)
    for row, column in np.ndindex(*found.shape):
        block = column // packed.block_columns
        zero = 2 ** (bits - 1) if zeros is None else code_at(zeros[row], block, bits)
        found[row, column] = (code_at(codes[row].reshape(-1), column, bits) - zero) * scales[row, block]
    return found


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EVERY_SCHEME), st.integers(1, 4), st.integers(1, 300), st.booleans())
def test_packed_bytes_mean_the_weight(scheme: IntegerScheme, rows: int, columns: int, lookup: bool) -> None:
    """Whatever the bits, groups and ragged shape, the bytes read back as exactly the values of the weight."""
    weight = random_weight(scheme, rows, columns)
    packed = (for_lookup if lookup else for_product)(weight)
    np.testing.assert_array_equal(values(packed, columns), dequantize(weight).numpy())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_ragged_block_is_filled_with_the_midpoint(bits: int) -> None:
    """What lies behind the last column is the code of zero."""
    codes = whole(for_product(random_weight(IntegerScheme(bits, 32), 3, 33)).codes)
    assert {code_at(row.reshape(-1), column, bits) for row in codes for column in range(33, 64)} == {2 ** (bits - 1)}


@pytest.mark.parametrize("columns", [64, 144, 300])
@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=str)
def test_the_runtime_multiplies_as_the_grid_says(scheme: IntegerScheme, columns: int, tmp_path: Path) -> None:
    """MatMulNBits on the packed weight is x @ dequantize(weight).T plus a bias, whole and ragged blocks alike."""
    weight = random_weight(scheme, 48, columns)
    value, bias = np.random.default_rng(0).standard_normal((5, columns)).astype(np.float32), torch.ones(48)
    factor = dequantize(weight).numpy().T.astype(np.float64)
    magnitude = np.abs(value) @ np.abs(factor) + 1  # of what is summed, which float32 rounds
    error = np.abs(run_product(tmp_path, weight, value, bias) - (value @ factor + 1))
    assert (error / magnitude).max() < 2e-6


@pytest.mark.parametrize(("scheme", "columns"), HELD_TABLES, ids=str)
def test_the_runtime_looks_up_as_the_grid_says(scheme: IntegerScheme, columns: int, tmp_path: Path) -> None:
    """GatherBlockQuantized on a packed table that is not refused gives exactly the rows of dequantize(table)."""
    weight, indices = random_weight(scheme, 48, columns), np.array([47, 0, 13, 13])
    found = run_lookup(tmp_path, weight, indices)
    np.testing.assert_allclose(found, dequantize(weight).numpy()[indices], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floats_stay_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    """A float weight takes the bytes of its dtype on disk, and the runtime computes with its very values."""
    weight, value = torch.randn(16, 40).to(dtype), np.eye(40, dtype=np.float32)
    np.testing.assert_array_equal(run_product(tmp_path, weight, value), weight.float().numpy().T)
    assert (tmp_path / "one.onnx_data").stat().st_size == weight.nbytes
    np.testing.assert_array_equal(run_lookup(tmp_path, weight, np.array([3, 15])), weight.float().numpy()[[3, 15]])


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_holds_a_few_rows_at_a_time(bits: int) -> None:
    """Beyond the weight itself, memory is bounded by the stripe, however large the weight is."""
    rows = 16 * STRIPE_CODES // 1000
    weight = random_weight(IntegerScheme(bits, 128), rows, 1000)
    packed = for_product(weight)
    tracemalloc.start()
    nbytes = sum(part.nbytes for part in packed.codes.parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert nbytes >= rows * 1000 * bits // 8
    assert peak < 4 * STRIPE_CODES
