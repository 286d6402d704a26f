"""Limits that the number type of the scales sets on the magnitudes of a weight.

Scales of integer grids, and the scales and super-scales of ggml's blocks, are fp16. Its values are at least 2^-24
apart, so a small scale is rounded with an error of up to 2^-25, which changes every value of its group.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.scheme import CODEBOOK_GROUP_SIZE, CodebookScheme, FloatScheme, GgmlScheme, IntegerScheme, Scheme

FP16_MAX, FP16_MAX_ERROR = 65024.0, 2.0**-25  # largest value with 8 bits; rounding error of values below 2^-14
MAX_SQUARE_EXPONENT, MAX_FACTOR = 40, 120  # of 2
COMPILED_DTYPES = (torch.bfloat16, torch.float32)  # that kernels read without a copy
FLOAT32_MAX, FLOAT32_MIN = 1e38, 1e-38  # of the scales of codebooks, which divide by at least FLOAT32_MIN

# Bits of a code, and the largest magnitude of a block over its fp16 scale (ggml-quants.c). K-quants have 6-bit or 8-bit
# scales times an fp16.
GGML_SPANS = {
    "q8_0": (8, 127),
    "q4_0": (4, 8),
    "q4_1": (4, 15),
    "q5_0": (5, 16),
    "iq4_nl": (4, 127),
    "q4_k": (4, 63 * 15),
    "q5_k": (5, 63 * 31),
    "q6_k": (6, 128 * 32),
    "iq4_xs": (4, 32 * 127),
    "q3_k": (3, 32 * 4),
    "q2_k": (2, 15 * 3),
    "iq3_s": (3, 31 * 15),
}
GGML_FP16_MINIMUM = ("q4_1",)  # blocks that store their minimum in fp16
GGML_MAX = 4 * FP16_MAX  # ggml's search squares sums of weights, which overflow float32 above


@dataclass(frozen=True, slots=True)
class ScaleLimits:
    """The magnitudes that a scheme represents.

    group_columns: columns whose largest magnitude sets a scale.
    bits: bits of a code, for a float type the bits of precision that it must keep.
    scale_error: largest error that rounding a scale adds to a value, if the scale is small.
    max_magnitude: largest value.
    """

    group_columns: int
    bits: int
    scale_error: float
    max_magnitude: float

    @property
    def min_magnitude(self) -> float:
        """The largest magnitude of a group below which the error of its scale exceeds one step of the grid."""
        return self.scale_error * 2.0 ** (self.bits - 1)

    def group_magnitudes(self, weight: Tensor) -> Tensor:
        """Return the largest magnitude of every group of a weight [rows, columns]: float32 [rows, groups].

        NaN is the largest.
        """
        if can_read_bits(weight):
            return _compiled_magnitudes(weight, self.group_columns)
        padding = -weight.shape[1] % self.group_columns
        padded = torch.nn.functional.pad(weight, (0, padding)) if padding else weight
        return _magnitudes(padded.reshape(len(weight), -1, self.group_columns)).float()

    def outside(self, magnitudes: Tensor) -> Tensor:
        """Return which magnitudes of groups are too small or too large; zero is neither."""
        return ((magnitudes > 0) & (magnitudes < self.min_magnitude)) | (magnitudes > self.max_magnitude)


def _compiled_magnitudes(weight: Tensor, group_columns: int) -> Tensor:
    from mcpmq.grids.kernels import integer_groups  # numba takes a second to import

    bits, shift = float_bits(weight)
    largest = np.empty((len(bits), -(-bits.shape[1] // group_columns)), np.uint32)
    integer_groups.largest_magnitudes(bits, shift, group_columns, largest)
    return torch.from_numpy(largest.view(np.float32))


def count_magnitudes(weight: Tensor, group_columns: int, dropped_bits: int, counts: Tensor) -> None:
    """Count the largest magnitude of every group of a weight whose bits kernels read, by its upper bits, in `counts`.

    counts: int64; only zeros have index 0.
    """
    from mcpmq.grids.kernels import integer_groups  # numba takes a second to import

    integer_groups.count_magnitudes(*float_bits(weight), group_columns, dropped_bits, counts.numpy())


def can_read_bits(weight: Tensor) -> bool:
    """Return whether kernels read the bits of a weight without a copy in another dtype."""
    return weight.device.type == "cpu" and weight.dtype in COMPILED_DTYPES


def float_bits(weight: Tensor) -> tuple[NDArray[np.unsignedinteger[Any]], int]:
    """Return the bits of a weight as uint16, if it is bfloat16, or as uint32, and their shift in a float32."""
    if weight.dtype == torch.bfloat16:
        return weight.contiguous().view(torch.uint16).numpy(), 16
    return weight.float().contiguous().numpy().view(np.uint32), 0


def _magnitudes(groups: Tensor) -> Tensor:
    """Return the largest magnitude of the last axis; NaN is the largest.

    Floats without their sign have the order of their bits, and the maximum of integers is several times faster.
    """
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[groups.element_size()]
    return (groups.view(integer) & torch.iinfo(integer).max).amax(-1).view(groups.dtype)


def scale_limits(scheme: Scheme | None, columns: int) -> ScaleLimits | None:
    """Return the limits of a scheme for a weight of this many columns; None if it has the range of float32."""
    match scheme:
        case IntegerScheme():
            divisor, ranges = abs(scheme.scale_divisor), 1 if scheme.symmetric else 2
            largest = FP16_MAX * divisor / ranges  # of opposite sign, two magnitudes are a range
            return ScaleLimits(scheme.group_columns(columns), scheme.bits, FP16_MAX_ERROR * divisor, largest)
        case GgmlScheme(name=name):
            bits, span = GGML_SPANS[name]
            largest = FP16_MAX if name in GGML_FP16_MINIMUM else min(FP16_MAX * span / 2, GGML_MAX)
            return ScaleLimits(scheme.block_columns, bits, FP16_MAX_ERROR * span, largest)
        case CodebookScheme():
            error = FLOAT32_MIN / 2 ** (scheme.bits - 1)
            return ScaleLimits(CODEBOOK_GROUP_SIZE, scheme.bits, error, FLOAT32_MAX)
        case FloatScheme(dtype="f16"):
            return ScaleLimits(columns, 8, FP16_MAX_ERROR, FP16_MAX)
    return None


def range_factor(squares: Tensor) -> float:
    """Return a power of two that brings the mean of squares near 1; 1 if products of them stay within float32.

    Columns of a weight are compared by these squares, so a common factor changes nothing.
    """
    exponent = int(torch.frexp(squares.float().mean()).exponent)
    return 1.0 if abs(exponent) <= MAX_SQUARE_EXPONENT else 2.0 ** -max(-MAX_FACTOR, min(MAX_FACTOR, exponent))
