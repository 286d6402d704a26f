"""The values on a grid, of any kind, arranged for rounding one column after another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.grids.value_table import ValueTable


def has_kernels(values: Tensor) -> bool:
    """Return whether the loops over columns are compiled for values of this dtype on this device."""
    return values.dtype == torch.float32 and values.device.type in ("cpu", "cuda")


@dataclass(frozen=True)
class Levels:
    """The value of code `q` in group `g` is (q - zero_point[g]) * scale[g] + offset[g], or table[q] * scale[g].

    Tensors are float32 [groups, rows], so that the rows of one group are contiguous; `table` is float32 [codes].
    vectors: magnitudes at a scale of 1, [vectors, columns of a vector]; consecutive columns have one of them together.
    has_fp16_scales: whether each scale is stored by itself as fp16, so that it may take any such value.
    """

    groups: Sequence[int]  # the group of every column
    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    offset: Tensor | None = None
    table: Tensor | None = None  # ascending multiples of 1/2
    vectors: NDArray[np.float32] | None = None
    has_fp16_scales: bool = False

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
    def _table(self) -> ValueTable:
        assert self.table is not None
        return ValueTable(self.table)

    @cached_property
    def _bounds(self) -> tuple[Tensor, Tensor]:
        """The lowest and highest code minus the zero point: [groups, rows]."""
        return self.qmin - self.zero_point, self.qmax - self.zero_point

    @cached_property
    def _group_indices(self) -> Tensor:
        """The group of every column on the device of the scales: int64 [columns]."""
        return torch.tensor(self.groups, device=self.scale.device)

    @property
    def vector_columns(self) -> int:
        """Consecutive columns whose codes are chosen together."""
        return 1 if self.vectors is None else self.vectors.shape[1]

    def nearest_vectors(self, units: Tensor, metric: Tensor) -> Tensor:
        """Return values over their scale of vectors near units, [columns, rows], of the same shape.

        metric: float32 [columns, columns], positive definite; an error e of a row costs e^T metric e, and it is small.
        """
        from mcpmq.grids.kernels.vectors import nearest_in_metric  # numba takes a second to import

        assert self.vectors is not None
        targets, values = units.cpu().contiguous().numpy(), np.empty(units.shape, np.float32)
        nearest_in_metric(targets, metric.cpu().contiguous().numpy(), self.vectors, values)
        return torch.from_numpy(values).to(units.device)

    def to_units(self, group: int, values: Tensor) -> Tensor:
        """Return values without offset over the scale of their group."""
        return values / self._divisor[group]

    def round_units(self, group: int, units: Tensor) -> Tensor:
        """Round values without offset over their scale, [rows] of a group, to those of codes; may change `units`."""
        if self.table is not None:
            return self._table.take(self._table.nearest(units))
        low, high = self._bounds
        return torch.clamp(units.round_(), low[group], high[group], out=units)

    def units(self, codes: Tensor) -> Tensor:
        """Return values without offset over their scale, float32, of codes uint8 [columns, rows]."""
        if self.table is not None:
            return self._table.take(codes)
        return codes - self.zero_point[self._group_indices]

    def codes(self, units: Tensor) -> Tensor:
        """Return the codes, uint8, that have these values without offset over their scale, [columns, rows]."""
        if self.table is not None:
            return self._table.nearest(units).to(torch.uint8)
        return (units + self.zero_point[self._group_indices]).to(torch.uint8)

    def values(self, codes: Tensor) -> Tensor:
        """Return the values of codes, uint8 [columns, rows]: float32."""
        values = self.units(codes).mul_(self.scale[self._group_indices])
        return values if self.offset is None else values.add_(self.offset[self._group_indices])

    def nearest(self, column: int, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes nearest to the targets [rows] of one column, and their values: [rows] each."""
        group = self.groups[column]
        codes = self._nearest_codes(group, targets)
        if self.table is None:
            values = (codes - self.zero_point[group]).mul_(self.scale[group])
        else:
            values = self._table.take(codes).mul_(self.scale[group])
        return codes, values if self.offset is None else values.add_(self.offset[group])

    def nearest_codes(self, targets: Tensor) -> Tensor:
        """Return the codes, uint8, nearest to the targets [columns, rows] of all columns."""
        return self._nearest_codes(self._group_indices, targets).to(torch.uint8)

    def _nearest_codes(self, group: int | Tensor, targets: Tensor) -> Tensor:
        if self.offset is None:
            steps = targets / self._divisor[group]
        else:
            steps = (targets - self.offset[group]) / self._divisor[group]
        if self.table is not None:
            return self._table.nearest(steps)
        return steps.round_().add_(self.zero_point[group]).clamp_(self.qmin, self.qmax)

    @cached_property
    def _grid(self) -> Tensor:
        """Divisor, scale, zero point and offset for the kernels: float32 [groups, 4, rows]."""
        offset = torch.zeros_like(self.scale) if self.offset is None else self.offset
        return torch.stack([self._divisor, self.scale, self.zero_point.expand_as(self.scale), offset], 1)

    @cached_property
    def unit_bounds(self) -> Tensor:
        """The lowest and highest units of all groups for the kernels: float32 [groups, 2, rows]."""
        return torch.stack([bound.expand_as(self.scale) for bound in self._bounds], 1)

    def round_columns(self, first: int, factors: Tensor, residual: Tensor, compensated: Tensor, codes: Tensor) -> None:
        """Round consecutive columns, float32 [columns, rows] from column `first` on, as LDLQ does.

        The arguments are those of `kernels.columns.round_columns`.
        """
        if residual.is_cuda:
            from mcpmq.grids.gpu import columns as gpu_columns  # needs the CUDA build of torch

            indices = self._group_indices[first : first + len(residual)].int()
            grid = self._grid, self.table, (self.qmin, self.qmax)
            gpu_columns.round_columns(factors, residual, compensated, codes, indices, *grid)
            return
        from mcpmq.grids.kernels import columns  # numba takes a second to import

        groups = np.array(self.groups[first : first + len(residual)])
        state = residual.numpy(), compensated.numpy(), codes.numpy(), groups, self._grid.numpy()
        if self.table is not None:
            columns.round_columns_to_table(factors.numpy(), *state, self.table.numpy())
        else:
            columns.round_columns(factors.numpy(), *state, np.array([self.qmin, self.qmax], np.float32))

    def improve_columns(self, group: int, corner: Tensor, units: Tensor, slope: Tensor, changes: Tensor) -> None:
        """Improve columns of a group on the CPU; the arguments are those of `kernels.columns.improve_columns`."""
        from mcpmq.grids.kernels import columns  # numba takes a second to import

        state = units.numpy(), slope.numpy(), changes.numpy()
        if self.table is not None:
            columns.improve_columns_in_table(corner.numpy(), *state, self.table.numpy())
        else:
            low, high = self._bounds
            columns.improve_columns(corner.numpy(), *state, low[group].numpy(), high[group].numpy())
