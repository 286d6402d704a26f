"""Check that the scales of a scheme represent a weight, from the largest magnitude of every group."""

from dataclasses import dataclass
from math import ceil, floor, log2
from typing import Self

import torch
from torch import Tensor

from mcpmq.errors import ScaleError
from mcpmq.grids.limits import ScaleLimits, can_read_bits, count_magnitudes, scale_limits
from mcpmq.scheme import Scheme

# Magnitudes are counted by the upper bits of their float32, which order them: exponent and 7 bits of the fraction.
COUNTED_BITS, DROPPED_BITS = 15, 16
MAX_ERROR_BITS = 5  # scales may add an error of 2^-5 of the typical magnitude, with 4-bit codes of 2^-4
INFINITY = 0x7F80  # the upper bits of infinity; those of NaN are larger
MAX_EXPONENT = 256
CHUNK_WEIGHTS = 1 << 20  # at a time: they stay in the cache
DEVICE_CHUNK_WEIGHTS = 1 << 27  # on devices other than the CPU: few large operations


@dataclass(frozen=True, slots=True)
class GroupMagnitudes:
    """The largest magnitudes of all groups of a weight, as counts; `add` counts those of more rows."""

    name: str
    scheme: Scheme
    limits: ScaleLimits
    counts: Tensor  # int64, by the upper bits of the magnitude; the first one counts zeros

    @classmethod
    def create(cls, name: str, scheme: Scheme | None, columns: int) -> Self | None:
        """Return the counts of no rows of a weight of this many columns; None if its scheme has no limits."""
        limits = scale_limits(scheme, columns)
        if scheme is None or limits is None:
            return None
        return cls(name, scheme, limits, torch.zeros(1 << COUNTED_BITS, dtype=torch.int64))

    def add(self, weight: Tensor) -> None:
        """Count the groups of rows [rows, columns]."""
        if can_read_bits(weight):
            count_magnitudes(weight, self.limits.group_columns, DROPPED_BITS, self.counts)
            return
        chunk_weights = CHUNK_WEIGHTS if weight.device.type == "cpu" else DEVICE_CHUNK_WEIGHTS
        for rows in torch.split(weight, max(1, chunk_weights // weight.shape[1])):
            magnitudes = self.limits.group_magnitudes(rows).flatten()
            indices = (magnitudes.view(torch.int32) >> DROPPED_BITS).maximum((magnitudes > 0).int())
            self.counts.add_(torch.bincount(indices, minlength=len(self.counts)).cpu())

    @property
    def are_finite(self) -> bool:
        """True if no value is infinite or NaN."""
        return not self.counts[INFINITY:].any()

    @property
    def are_limited(self) -> bool:
        """True if the scale of a group has an error of more than one step of the grid."""
        return bool(self._count_below(self.limits.min_magnitude))

    @property
    def typical(self) -> float:
        """The median magnitude of groups that are not all zeros; 0 without such groups."""
        nonzero = self.counts[1:].cumsum(0)
        half = int((nonzero[-1] + 1) // 2)
        return self._magnitude(1 + int(torch.searchsorted(nonzero, half))) if half else 0.0

    @property
    def largest(self) -> float:
        """The largest magnitude, rounded down to 8 bits."""
        return self._magnitude(int(self.counts.nonzero().max()))

    def check_largest(self) -> None:
        """Check that no value is too large.

        Raises:
            ScaleError: a value is too large.
        """
        if (largest := self.largest) > self.limits.max_magnitude:
            raise ScaleError(
                f"`{self.name}` has a value of {largest:.3g}, too large for `{self.scheme}`, which represents values up"
                f" to {self.limits.max_magnitude:.3g}",
                self._hint(),
            )

    @property
    def are_represented(self) -> bool:
        """True if no value is too large and the scale of the typical group is exact enough."""
        error = 2.0 ** -min(self.limits.bits, MAX_ERROR_BITS) * self.typical
        return self.largest <= self.limits.max_magnitude and not (self.are_limited and self.limits.scale_error > error)

    def exponent_range(self) -> tuple[int, int]:
        """Return the lowest and highest power of two that a multiplied weight still has exact scales with."""
        if not self.typical:
            return -MAX_EXPONENT, MAX_EXPONENT
        lowest = ceil(log2(2 * self.limits.min_magnitude / self.typical))
        return lowest, floor(log2(self.limits.max_magnitude / self.largest))

    def deviation(self) -> str | None:
        """Return a note if scales of the weight are inexact.

        Raises:
            ScaleError: they are too inexact for the typical magnitude of the weight.
        """
        if not self.are_limited:
            return None
        error, typical = self.limits.scale_error, self.typical
        if not self.are_represented:
            raise ScaleError(
                f"`{self.name}` has a typical magnitude of {typical:.2g}, and the scales of `{self.scheme}` represent"
                f" groups with a largest magnitude of at least {self.limits.min_magnitude:.2g}",
                self._hint(),
            )
        groups = f"{int(self.counts.sum()):,}"
        if lost := self._count_below(2 * error):
            return f"{lost:,} of {groups} groups are too small for scales of `{self.scheme}`: error up to {error:.1g}"
        if error > 2.0**-self.limits.bits * typical:
            return f"small scales of `{self.scheme}` are inexact: error up to {error / typical:.1%}"
        return None

    def _hint(self) -> str:
        return f'add `"{self.name}" = "keep"` as the last line of [weights] in the recipe'

    def _count_below(self, magnitude: float) -> int:
        bits = int(torch.tensor(magnitude, dtype=torch.float32).view(torch.int32)) >> DROPPED_BITS
        return int(self.counts[1:bits].sum())

    def _magnitude(self, index: int) -> float:
        return float(torch.tensor(index << DROPPED_BITS, dtype=torch.int32).view(torch.float32))


def check_double_quant(name: str, scale: Tensor, stored: Tensor) -> str | None:
    """Compare the scales of a codebook, float32 [rows, groups], with those that 8 bits store; return a note.

    A few very large scales make the steps of all others too large.

    Raises:
        ScaleError: the scale of the typical group is lost.
    """
    nonzero = scale > 0
    if not nonzero.any():
        return None
    typical = scale[nonzero].median()
    lost = nonzero & ((stored - scale).abs() > scale.maximum(typical) / 8)
    groups = f"{int(lost.sum()):,} of {scale.numel():,} groups"
    if lost.sum() > nonzero.sum() / 2:
        raise ScaleError(
            f"`{name}` has scales from {float(scale[nonzero].min()):.2g} to {float(scale.max()):.2g}, which double"
            f" quantization does not represent in {groups}",
            f'add `"{name}" = "keep"` as the last line of [weights] in the recipe',
        )
    return f"double quantization changes the scale of {groups} by more than 1/8" if lost.any() else None
