"""The values that some columns of a weight may take, whatever the grid, ready to be rounded to column by column."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """The value of code `q` in group `g` is (q - zero[g]) * scale[g] + base[g], or table[q] * scale[g].

    Everything is float32 [groups, rows]: a column is rounded with all its rows at once, so rows lie side by side.
    """

    groups: Sequence[int]  # of every column
    scale: Tensor
    zero: Tensor
    lowest: int
    highest: int
    base: Tensor | None = None
    table: Tensor | None = None  # ascending

    def on(self, device: torch.device) -> "Levels":
        """The same where they are to be rounded to."""
        base, table = (None if part is None else part.to(device) for part in (self.base, self.table))
        return replace(self, scale=self.scale.to(device), zero=self.zero.to(device), base=base, table=table)

    @cached_property
    def _divisor(self) -> Tensor:
        """A scale of zero has one value only: any finite quotient will do."""
        return torch.where(self.scale == 0, torch.ones_like(self.scale), self.scale)

    @cached_property
    def _middles(self) -> Tensor:
        assert self.table is not None
        return (self.table[1:] + self.table[:-1]) / 2

    def nearest(self, column: int, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest code to every wanted value of one column, and the values of these codes: [rows] each."""
        group = self.groups[column]
        if self.base is None:
            steps = wanted / self._divisor[group]
        else:
            steps = (wanted - self.base[group]) / self._divisor[group]
        if self.table is None:
            codes = steps.round_().add_(self.zero[group]).clamp_(self.lowest, self.highest)
            value = (codes - self.zero[group]).mul_(self.scale[group])
        else:
            codes = torch.bucketize(steps, self._middles)
            value = self.table[codes] * self.scale[group]
        return codes, value if self.base is None else value.add_(self.base[group])
