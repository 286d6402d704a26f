"""The limits of magnitudes are those of the scales that each grid stores."""

import gguf
import numpy as np
import pytest
import torch

from mcpmq.errors import ScaleError
from mcpmq.grids import dequantize, ggml, quantize
from mcpmq.grids.activation import check_range
from mcpmq.grids.limits import GGML_SPANS, range_factor, scale_limits
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme, parse_scheme
from tests.rounding.oracle import grid_scheme


@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_every_block_type_of_ggml_has_limits(name: str) -> None:
    """A weight just above the smallest magnitude is rounded with at most two steps of error, for both signs."""
    limits = scale_limits(GgmlScheme(name), 256)
    assert limits is not None
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(32, 256, generator=generator) * 2 - 1
    weight *= 1.05 * limits.min_magnitude / limits.group_magnitudes(weight).min()

    error = limits.group_magnitudes(dequantize(quantize(weight, GgmlScheme(name))) - weight)

    assert not limits.outside(limits.group_magnitudes(weight)).any()
    assert (error <= 3 * 2.0 ** -(limits.bits - 1) * limits.group_magnitudes(weight)).all()


FP16_OFFSETS = {"q4_1": (0, 2), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "q3_k": (108,), "q2_k": (80, 82)}


@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_spans_are_the_largest_values_of_blocks(name: str) -> None:
    """Decoded by gguf: random codes and scales with an fp16 scale of 1 and no minimum; no q8_0 is written with -128."""
    blocks = np.random.default_rng(1).integers(0, 256, (16_000, GgmlScheme(name).row_nbytes(256)), np.uint8)
    scale, *minimum = FP16_OFFSETS.get(name, (0,))
    for start in range(0, blocks.shape[1], GGML_BLOCKS[name][1]):
        blocks[:, start + scale : start + scale + 2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
        for offset in minimum:
            blocks[:, start + offset : start + offset + 2] = 0

    values = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name.upper()])

    assert np.abs(values).max() == GGML_SPANS[name][1] + (name == "q8_0")


def test_groups_of_zeros_and_the_last_group_are_within_limits() -> None:
    """Zero needs no scale, and padding is zero."""
    limits = scale_limits(grid_scheme("int4-g32"), 40)
    assert limits is not None
    weight = torch.zeros(2, 40)
    weight[1, 39], weight[0, 1] = 1e-9, -1e9

    magnitudes = limits.group_magnitudes(weight)

    assert magnitudes.tolist() == [[1e9, 0], [0, pytest.approx(1e-9)]]
    assert limits.outside(magnitudes).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("text", ["f32", "bf16", "keep"])
def test_floats_with_the_exponents_of_float32_have_no_limits(text: str) -> None:
    """Only fp16, and the scales of codebooks, are limited."""
    assert scale_limits(parse_scheme(text), 256) is None


@pytest.mark.parametrize("name", ["q8_0", "q4_1", "q4_k", "q6_k", "iq4_nl", "iq4_xs", "q3_k", "q2_k", "iq3_s"])
def test_ggml_writes_no_infinite_scale(name: str) -> None:
    """A value of 10^9 is an error of the grid itself, for callers that do not check magnitudes."""
    weight = torch.ones(2, 256)
    weight[1, 3] = -1e9
    with pytest.raises(ScaleError, match=f"a value of 1e.09 is too large for `{name}`"):
        ggml.quantize(weight, GgmlScheme(name))


@pytest.mark.parametrize(("square", "factor"), [(1e-3, 1.0), (2.0**39, 1.0), (2.0**60, 2.0**-61), (2.0**-90, 2.0**89)])
def test_squares_far_from_one_are_scaled(square: float, factor: float) -> None:
    """Ordinary squares are unchanged, so that codes are those without the factor."""
    assert range_factor(torch.full((4,), square)) == factor


def test_an_activation_range_needs_a_normal_scale() -> None:
    """Inputs of zero alone need none."""
    check_range("a", (0.0, 0.0))
    check_range("a", (-1e-30, 0.0))
    with pytest.raises(ScaleError, match="the inputs of `a` have a range of 2e-38, too small for a float32 scale"):
        check_range("a", (-1e-38, 1e-38))
