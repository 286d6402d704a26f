"""The values on a grid, of any kind, arranged for rounding one column after another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """The value of code `q` in group `g` is (q - zero_point[g]) * scale[g] + offset[g], or table[q] * scale[g].

    Tensors are float32 [groups, rows], so that the rows of one group are contiguous; `table` is float32 [codes].
    """

    groups: Sequence[int]  # the group of every column
    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    offset: Tensor | None = None
    table: Tensor | None = None  # ascending

    def to(self, device: torch.device) -> "Levels":
        """Return the same levels on a device."""
        offset, table = (None if part is None else part.to(device) for part in (self.offset, self.table))
        scale, zero_point = self.scale.to(device), self.zero_point.to(device)
        return replace(self, scale=scale, zero_point=zero_point, offset=offset, table=table)

    @cached_property
    def _divisor(self) -> Tensor:
        """The scale, or 1 where it is zero: such a group has one value only, and any finite quotient gives it."""
        return torch.where(self.scale == 0, torch.ones_like(self.scale), self.scale)

    @cached_property
    def _midpoints(self) -> Tensor:
        assert self.table is not None
        return (self.table[1:] + self.table[:-1]) / 2

    def nearest(self, column: int, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes nearest to the targets [rows] of one column, and their values: [rows] each."""
        group = self.groups[column]
        if self.offset is None:
            steps = targets / self._divisor[group]
        else:
            steps = (targets - self.offset[group]) / self._divisor[group]
        if self.table is None:
            codes = steps.round_().add_(self.zero_point[group]).clamp_(self.qmin, self.qmax)
            values = (codes - self.zero_point[group]).mul_(self.scale[group])
        else:
            codes = torch.bucketize(steps, self._midpoints)
            values = self.table[codes] * self.scale[group]
        return codes, values if self.offset is None else values.add_(self.offset[group])
