"""ggml's blocks taken apart and put together again, against gguf-py's reading of them."""

import numpy as np
import pytest
import torch
from gguf.quants import dequantize as gguf_dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.grids import ggml
from mcpmq.grids.ggml_blocks import LAYOUTS
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme

NAMES = st.sampled_from(sorted(GGML_BLOCKS))


def test_every_type_of_a_recipe_has_its_layout() -> None:
    """No type can be asked for that cannot be rounded on."""
    assert set(LAYOUTS) == set(GGML_BLOCKS)


@settings(max_examples=80, deadline=None)
@given(NAMES, st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_any_bytes_come_apart_and_together_again(name: str, rows: int, blocks: int, seed: int) -> None:
    """Codes that are taken out and put back change no byte, whatever the bytes."""
    scheme = GgmlScheme(name)
    nbytes = blocks * GGML_BLOCKS[name][1]
    given_bytes = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (rows, nbytes), np.uint8))

    assert torch.equal(ggml.with_codes(given_bytes, ggml.codes_of(given_bytes, scheme), scheme), given_bytes)


@settings(max_examples=80, deadline=None)
@given(NAMES, st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_any_codes_on_fitted_scales_are_read_alike_by_gguf_py(name: str, rows: int, blocks: int, seed: int) -> None:
    """Our value of every code is the one that gguf-py reads from the packed bytes; the scales stay."""
    scheme, columns = GgmlScheme(name), blocks * GGML_BLOCKS[name][0]
    random = np.random.default_rng(seed)
    weight = torch.from_numpy(random.standard_normal((rows, columns), np.float32))
    fitted = ggml.round_to(weight, scheme).codes
    codes = torch.from_numpy(random.integers(0, 2 ** LAYOUTS[name].bits, (rows, columns), np.uint8))

    packed = ggml.with_codes(fitted, codes, scheme)

    levels = ggml.levels(fitted, scheme)
    scale, steps = levels.scale[levels.groups].T, codes.float() - levels.zero[levels.groups].T
    if levels.table is not None:
        steps = levels.table[codes.long()]
    ours = steps * scale if levels.base is None else steps * scale + levels.base[levels.groups].T
    theirs = gguf_dequantize(packed.numpy(), ggml.ggml_type(name))
    assert np.array_equal(theirs, ours.numpy())
    assert torch.equal(ggml.codes_of(packed, scheme), codes)


@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_nearest_codes_on_fitted_scales_are_about_those_of_ggml(name: str) -> None:
    """Rounding every column to the nearest on ggml's scales gives no larger error than ggml's own codes."""
    scheme = GgmlScheme(name)
    weight = 0.02 * torch.randn(16, 512, generator=torch.Generator().manual_seed(2))
    theirs = ggml.round_to(weight, scheme)
    levels = ggml.levels(theirs.codes, scheme)

    ours = torch.stack([levels.nearest(column, weight[:, column])[1] for column in range(512)], dim=1)

    assert torch.all((ours - weight).abs() <= (ggml.dequantize(theirs) - weight).abs() + 1e-7)
