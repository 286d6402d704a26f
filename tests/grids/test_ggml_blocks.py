"""Block layouts of ggml: unpacking and packing codes and scales, against gguf-py."""

import numpy as np
import pytest
import torch
from gguf.quants import dequantize as gguf_dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.grids import ggml
from mcpmq.grids.ggml_blocks import BLOCK_LAYOUTS
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme

NAMES = st.sampled_from(sorted(GGML_BLOCKS))
COLUMN_CODES = st.sampled_from(sorted({*GGML_BLOCKS} - {"iq3_s"}))  # the codes of iq3_s are of four columns together


def test_every_block_type_has_a_layout() -> None:
    """GPTQ can round to every block type that a recipe can name."""
    assert set(BLOCK_LAYOUTS) == set(GGML_BLOCKS)


@settings(max_examples=80, deadline=None)
@given(NAMES, st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_unpacked_codes_are_packed_to_the_same_bytes(name: str, rows: int, blocks: int, seed: int) -> None:
    """Replacing the codes of any block by themselves changes no byte."""
    scheme = GgmlScheme(name)
    nbytes = blocks * GGML_BLOCKS[name][1]
    given_bytes = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (rows, nbytes), np.uint8))

    assert torch.equal(ggml.replace_codes(given_bytes, ggml.unpack_codes(given_bytes, scheme), scheme), given_bytes)


@settings(max_examples=80, deadline=None)
@given(COLUMN_CODES, st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_gguf_py_reads_replaced_codes_with_our_values(name: str, rows: int, blocks: int, seed: int) -> None:
    """The value of every code equals the one that gguf-py reads from the packed bytes."""
    scheme, columns = GgmlScheme(name), blocks * GGML_BLOCKS[name][0]
    random = np.random.default_rng(seed)
    weight = torch.from_numpy(random.standard_normal((rows, columns), np.float32))
    chosen = ggml.quantize(weight, scheme).blocks
    codes = torch.from_numpy(random.integers(0, 2 ** BLOCK_LAYOUTS[name].bits, (rows, columns), np.uint8))

    packed = ggml.replace_codes(chosen, codes, scheme)

    levels = ggml.levels(chosen, columns, scheme)
    scale, steps = levels.scale[levels.groups].T, codes.float() - levels.zero_point[levels.groups].T
    if levels.table is not None:
        steps = levels.table[codes.long()]
    ours = steps * scale if levels.offset is None else steps * scale + levels.offset[levels.groups].T
    theirs = gguf_dequantize(packed.numpy(), ggml.ggml_type(name))
    assert np.array_equal(theirs, ours.numpy())
    assert torch.equal(ggml.unpack_codes(packed, scheme), codes)


@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_nearest_codes_err_no_more_than_those_of_ggml(name: str) -> None:
    """Rounding every column to nearest with the scales of ggml gives no larger error than the codes of ggml."""
    scheme = GgmlScheme(name)
    weight = 0.02 * torch.randn(16, 512, generator=torch.Generator().manual_seed(2))
    theirs = ggml.quantize(weight, scheme)
    levels = ggml.levels(theirs.blocks, 512, scheme)

    ours = torch.stack([levels.nearest(column, weight[:, column])[1] for column in range(512)], dim=1)

    assert torch.all((ours - weight).abs() <= (ggml.dequantize(theirs) - weight).abs() + 1e-7)
