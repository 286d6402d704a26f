"""Integer grids against a brute force of a few lines, and against gguf-py's layouts of the same numbers."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize as gguf_quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcpmq.errors import RecipeError
from mcpmq.grids import integer
from mcpmq.qtensor import QTensor
from mcpmq.scheme import GROUP_SIZES, IntegerScheme

SCHEMES = st.builds(IntegerScheme, st.sampled_from([4, 8]), st.sampled_from([None, *GROUP_SIZES]), st.booleans())


def _weight(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def _rounded(weight: Tensor, scheme: IntegerScheme) -> QTensor:
    return integer.round_to(weight, integer.fit(weight, scheme), scheme)


def _brute_force(weight: Tensor, scheme: IntegerScheme) -> Tensor:
    """The same grid, one group and one value at a time, trying every code."""
    out, top = torch.zeros_like(weight), 2**scheme.bits - 1
    width = scheme.group_size or weight.shape[1]
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], width):
            group = weight[row, start : start + width]
            if scheme.symmetric:
                extreme = max(group.tolist(), key=abs)
                scale = extreme / -8 if scheme.bits == 4 else abs(extreme) / 127
            else:
                scale = (max(*group.tolist(), 0.0) - min(*group.tolist(), 0.0)) / top
            scale = float(np.float16(np.float32(scale))) or 1.0
            zero = 2 ** (scheme.bits - 1) if scheme.symmetric else round(-min(*group.tolist(), 0.0) / scale)
            codes = range(1 if scheme.symmetric and scheme.bits == 8 else 0, top + 1)
            for column, value in enumerate(group.tolist()):
                out[row, start + column] = min(((code - zero) * scale for code in codes), key=lambda x: abs(x - value))
    return out


@settings(max_examples=40, deadline=None)
@given(SCHEMES, st.integers(1, 3), st.integers(2, 70), st.integers(0, 2**31))
def test_rounding_is_the_nearest_of_all_codes(scheme: IntegerScheme, rows: int, columns: int, seed: int) -> None:
    """No code of the grid is nearer than the one that was chosen."""
    weight = _weight(rows, columns, seed)

    found = integer.dequantize(_rounded(weight, scheme))
    best = _brute_force(weight, scheme)

    assert torch.all((found - weight).abs() <= (best - weight).abs() + 1e-7)


@settings(max_examples=40, deadline=None)
@given(SCHEMES, st.integers(1, 3), st.integers(1, 70), st.integers(0, 2**31))
def test_values_on_the_grid_stay_where_they_are(scheme: IntegerScheme, rows: int, columns: int, seed: int) -> None:
    """Rounding what was dequantized on its own grid changes no code, for any ragged shape."""
    weight = _weight(rows, columns, seed)
    grid = integer.fit(weight, scheme)
    once = integer.round_to(weight, grid, scheme)

    again = integer.round_to(integer.dequantize(once), grid, scheme)

    assert torch.equal(again.codes, once.codes)


@pytest.mark.parametrize(("bits", "ggml"), [(4, "Q4_0"), (8, "Q8_0")])
def test_the_symmetric_grids_are_those_of_ggml(bits: int, ggml: str) -> None:
    """The scales equal Q4_0's and Q8_0's bit for bit: the same numbers may be taken."""
    weight = _weight(8, 256, seed=1)
    blocks = gguf_quantize(weight.numpy(), GGMLQuantizationType[ggml]).reshape(-1, 18 if bits == 4 else 34)
    theirs = np.ascontiguousarray(blocks[:, :2]).view(np.float16).reshape(8, 8)

    ours = _rounded(weight, IntegerScheme(bits, 32)).scale

    assert ours is not None
    assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("scheme", [IntegerScheme(4, 32), IntegerScheme(8, 32), IntegerScheme(4, 32, False)])
def test_zeros_stay_zeros(scheme: IntegerScheme) -> None:
    """A dead group, and one too small for fp16, become exact zeros."""
    for weight in (torch.zeros(2, 64), torch.full((2, 64), 1e-9)):
        assert torch.equal(integer.dequantize(_rounded(weight, scheme)), torch.zeros(2, 64))


def test_more_bits_and_smaller_groups_are_closer() -> None:
    """The order that everybody expects."""
    weight = _weight(16, 512, seed=2)

    def error(scheme: IntegerScheme) -> float:
        return float((integer.dequantize(_rounded(weight, scheme)) - weight).norm())

    assert error(IntegerScheme(8, 32)) < error(IntegerScheme(4, 16)) < error(IntegerScheme(4, 128))
    assert (
        error(IntegerScheme(4, 32, False)) < error(IntegerScheme(4, 128, False)) < error(IntegerScheme(4, None, False))
    )


def test_a_scale_that_fp16_cannot_hold_is_refused() -> None:
    """A weight of a million is no weight to quantize in silence."""
    with pytest.raises(RecipeError, match="too large for fp16"):
        integer.fit(torch.full((1, 32), 1e6), IntegerScheme(4, 32))


@settings(max_examples=40, deadline=None)
@given(SCHEMES, st.integers(1, 3), st.integers(2, 70), st.integers(0, 2**31))
def test_importance_never_makes_the_weighted_error_larger(
    scheme: IntegerScheme, rows: int, columns: int, seed: int
) -> None:
    """Of the covering grid and the smaller ones the best is taken, group by group; for any ragged shape."""
    weight = _weight(rows, columns, seed)
    importance = torch.randn(columns, generator=torch.Generator().manual_seed(seed)).mul(2).exp()

    def error(grid: integer.IntegerGrid) -> float:
        found = integer.dequantize(integer.round_to(weight, grid, scheme))
        return float(((found - weight).square() * importance).sum())

    assert error(integer.fit(weight, scheme, importance)) <= error(integer.fit(weight, scheme)) * (1 + 1e-5)


@pytest.mark.parametrize("scheme", [IntegerScheme(4, 64), IntegerScheme(4, 64, False), IntegerScheme(8, None)])
def test_a_grid_may_leave_out_a_value_that_does_not_matter(scheme: IntegerScheme) -> None:
    """One large weight of a column that sees next to nothing no longer coarsens the grid of all others."""
    weight, importance = _weight(4, 64, seed=7), torch.ones(64)
    weight[:, 3], importance[3] = 0.2, 1e-6

    coarse, fine = integer.fit(weight, scheme), integer.fit(weight, scheme, importance)

    assert torch.all(fine.scale.abs() < 0.85 * coarse.scale.abs())


def test_without_importance_of_any_column_a_grid_covers_all() -> None:
    """Nothing is left out on no grounds."""
    weight, scheme = _weight(4, 64, seed=7), IntegerScheme(4, 32)

    assert torch.equal(integer.fit(weight, scheme, torch.zeros(64)).scale, integer.fit(weight, scheme).scale)
