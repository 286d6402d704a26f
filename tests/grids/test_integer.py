"""Integer grids against brute force and against the same grids in gguf-py."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize as gguf_quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcpmq.errors import ScaleError
from mcpmq.grids import integer
from mcpmq.grids.kernels.integer_groups import round_scales
from mcpmq.qtensor import IntegerTensor
from mcpmq.scheme import GROUP_SIZES, IntegerScheme

SCHEMES = st.builds(IntegerScheme, st.sampled_from([4, 8]), st.sampled_from([None, *GROUP_SIZES]), st.booleans())


def _weight(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def _quantize(weight: Tensor, scheme: IntegerScheme) -> IntegerTensor:
    return integer.round_to_grid(weight, integer.choose_grid(weight, scheme), scheme)


def _brute_force(weight: Tensor, scheme: IntegerScheme) -> Tensor:
    """Round one value at a time by trying every code of its group."""
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
def test_every_value_gets_its_nearest_code(scheme: IntegerScheme, rows: int, columns: int, seed: int) -> None:
    """No code of the grid is nearer than the chosen one."""
    weight = _weight(rows, columns, seed)

    found = integer.dequantize(_quantize(weight, scheme))
    best = _brute_force(weight, scheme)

    assert torch.all((found - weight).abs() <= (best - weight).abs() + 1e-7)


@settings(max_examples=40, deadline=None)
@given(SCHEMES, st.integers(1, 3), st.integers(1, 70), st.integers(0, 2**31))
def test_values_on_the_grid_keep_their_codes(scheme: IntegerScheme, rows: int, columns: int, seed: int) -> None:
    """Rounding dequantized values on the same grid changes no code, for any shape."""
    weight = _weight(rows, columns, seed)
    grid = integer.choose_grid(weight, scheme)
    once = integer.round_to_grid(weight, grid, scheme)

    again = integer.round_to_grid(integer.dequantize(once), grid, scheme)

    assert torch.equal(again.codes, once.codes)


@pytest.mark.parametrize(("bits", "ggml"), [(4, "Q4_0"), (8, "Q8_0")])
def test_symmetric_scales_equal_those_of_ggml(bits: int, ggml: str) -> None:
    """The scales equal those of Q4_0 and Q8_0 bit for bit, so that GGUF stores the same numbers."""
    weight = _weight(8, 256, seed=1)
    blocks = gguf_quantize(weight.numpy(), GGMLQuantizationType[ggml]).reshape(-1, 18 if bits == 4 else 34)
    theirs = np.ascontiguousarray(blocks[:, :2]).view(np.float16).reshape(8, 8)

    ours = _quantize(weight, IntegerScheme(bits, 32)).scale

    assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("scheme", [IntegerScheme(4, 32), IntegerScheme(8, 32), IntegerScheme(4, 32, False)])
def test_zeros_stay_zeros(scheme: IntegerScheme) -> None:
    """Groups that are all zeros, or whose scale underflows in fp16, give exact zeros."""
    for weight in (torch.zeros(2, 64), torch.full((2, 64), 1e-9)):
        assert torch.equal(integer.dequantize(_quantize(weight, scheme)), torch.zeros(2, 64))


def test_more_bits_and_smaller_groups_have_less_error() -> None:
    """8 bits err less than 4, and smaller groups less than larger ones."""
    weight = _weight(16, 512, seed=2)

    def error(scheme: IntegerScheme) -> float:
        return float((integer.dequantize(_quantize(weight, scheme)) - weight).norm())

    assert error(IntegerScheme(8, 32)) < error(IntegerScheme(4, 16)) < error(IntegerScheme(4, 128))
    assert (
        error(IntegerScheme(4, 32, False)) < error(IntegerScheme(4, 128, False)) < error(IntegerScheme(4, None, False))
    )


def test_a_scale_too_large_for_fp16_is_an_error() -> None:
    """A weight of a million has a scale beyond the range of fp16."""
    with pytest.raises(ScaleError, match="a scale of 1.25e.05 is too large for fp16"):
        integer.choose_grid(torch.full((1, 32), 1e6), IntegerScheme(4, 32))
    with pytest.raises(ScaleError, match="a scale of 1.25e.05 is too large for fp16"):
        integer.quantize(torch.full((1, 32), 1e6), IntegerScheme(4, 32))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.floats(-70000, 70000, width=32), st.floats(-(2.0**-13), 2.0**-13, width=32), st.just(-0.0))),
    st.sampled_from([-8.0, 127.0, 7.0, 1.0, -1.0]),
)
def test_compiled_scales_are_those_of_torch(values: list[float], divisor: float) -> None:
    """Normal and subnormal numbers of fp16, ties, both signs, and zeros; scales that vanish become 1."""
    largest = torch.tensor(values, dtype=torch.float32)
    ties = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 2**-24 * 1.5, -(2**-25), 2**-15, 65519.0]) * abs(divisor)
    largest = torch.cat([largest, ties])
    scales, halves = np.empty(len(largest), np.float32), np.empty(len(largest), np.uint16)

    top = round_scales(largest.numpy(), np.float32(divisor), scales, halves)

    expected = (largest / divisor).half()
    finite = expected.isfinite()
    expected[expected == 0] = 1
    assert top == (largest / divisor).abs().max()
    assert finite.all() == (top < 65520)
    assert torch.equal(torch.from_numpy(halves.view(np.float16))[finite], expected[finite])
    assert torch.equal(torch.from_numpy(scales)[finite], expected[finite].float())


@settings(max_examples=40, deadline=None)
@given(SCHEMES, st.integers(1, 3), st.integers(2, 70), st.integers(0, 2**31))
def test_importance_never_increases_the_weighted_error(
    scheme: IntegerScheme, rows: int, columns: int, seed: int
) -> None:
    """The search selects the best of the full range and the clipped ranges per group, for any shape."""
    weight = _weight(rows, columns, seed)
    importance = torch.randn(columns, generator=torch.Generator().manual_seed(seed)).mul(2).exp()

    def error(grid: integer.IntegerGrid) -> float:
        found = integer.dequantize(integer.round_to_grid(weight, grid, scheme))
        return float(((found - weight).square() * importance).sum())

    assert error(integer.choose_grid(weight, scheme, importance)) <= error(integer.choose_grid(weight, scheme)) * (
        1 + 1e-5
    )


@pytest.mark.parametrize("scheme", [IntegerScheme(4, 64), IntegerScheme(4, 64, False), IntegerScheme(8, None)])
def test_a_value_of_little_importance_is_clipped(scheme: IntegerScheme) -> None:
    """One large weight in a column with small inputs no longer enlarges the scale of its group."""
    weight, importance = _weight(4, 64, seed=7), torch.ones(64)
    weight[:, 3], importance[3] = 0.2, 1e-6

    full, clipped = integer.choose_grid(weight, scheme), integer.choose_grid(weight, scheme, importance)

    assert torch.all(clipped.scale.abs() < 0.85 * full.scale.abs())


def test_zero_importance_gives_the_full_range() -> None:
    """Without any importance no value is clipped."""
    weight, scheme = _weight(4, 64, seed=7), IntegerScheme(4, 32)

    assert torch.equal(
        integer.choose_grid(weight, scheme, torch.zeros(64)).scale, integer.choose_grid(weight, scheme).scale
    )


def test_clipped_8_bit_values_get_the_code_1_at_least() -> None:
    """Symmetric 8-bit codes are 1..255 like those of Q8_0, also for a value far below the clipped range."""
    weight, importance = _weight(4, 64, seed=7), torch.ones(64)
    weight[:, 3], importance[3] = -0.2, 1e-6

    codes = integer.quantize(weight, IntegerScheme(8, None), importance).codes

    assert codes[:, 3].tolist() == [1, 1, 1, 1]
    assert int(codes.min()) == 1


@pytest.mark.parametrize("scheme", [IntegerScheme(4, 32), IntegerScheme(4, 32, False), IntegerScheme(8, 32)])
def test_the_search_covers_clip_ratios_from_1_to_0_3(scheme: IntegerScheme) -> None:
    """Each group has the grid of least weighted error among eight ratios, and each ratio is best for a group."""
    weight, importance = _weight(400, 32, seed=3), torch.ones(32)
    outliers = weight.abs().amax(1) * torch.linspace(1, 4, 400)
    weight[:, 5], weight[:, 6], importance[5:7] = outliers, -outliers, 1e-9
    grids = [integer.choose_grid(weight * ratio, scheme) for ratio in (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)]
    values = [integer.dequantize(integer.round_to_grid(weight, grid, scheme)) for grid in grids]
    errors = torch.stack([((found - weight).square() * importance).sum(1) for found in values])

    chosen = integer.choose_grid(weight, scheme, importance)

    best = errors.argmin(0)
    assert set(best.tolist()) == set(range(8))
    assert torch.equal(chosen.scale, torch.stack([grid.scale for grid in grids])[best, range(400)])
    assert torch.equal(chosen.zero_point, torch.stack([grid.zero_point for grid in grids])[best, range(400)])


def test_the_error_has_the_largest_scale() -> None:
    """The scale of the second group, of two million, is reported, not that of the first, of one million."""
    weight = torch.cat([torch.full((1, 32), 1e6), torch.full((1, 32), -2e6)], 1)

    with pytest.raises(ScaleError, match=r"a scale of 2\.5e\+05 is too large"):
        integer.choose_grid(weight, IntegerScheme(4, 32))


@pytest.mark.parametrize("scheme", [IntegerScheme(4, 16), IntegerScheme(4, 16, False), IntegerScheme(8, None)])
def test_columns_and_groups_can_be_rounded_alone(scheme: IntegerScheme) -> None:
    """Rounding column by column, on grids chosen for 32 columns each, gives the tensor of the whole weight."""
    weight = _weight(3, 64 if scheme.group_size else 32, seed=4)
    grids = [integer.choose_grid(part, scheme) for part in weight.split(32, 1)]
    parts = zip(weight.split(32, 1), [integer.levels(grid, 32, scheme) for grid in grids], strict=True)
    codes = torch.cat(
        [
            torch.stack([levels.nearest(column, part[:, column])[0] for column in range(32)], 1)
            for part, levels in parts
        ],
        1,
    )

    assembled = integer.assemble(integer.concat(grids), codes.to(torch.uint8), weight.shape[1], scheme)

    expected = _quantize(weight, scheme)
    assert torch.equal(assembled.codes, expected.codes)
    assert torch.equal(assembled.scale, expected.scale)
    assert torch.equal(integer.dequantize(assembled), integer.dequantize(expected))
