"""Group descent: improve the codes and scales of a rounded weight, given the Hessian of its inputs.

Group after group, the one of largest input energy first, gets the scale with the least loss for all other values, and
then each of its columns the best code, as in QuantEase (arXiv 2309.01885). With the error E of the values and the
Hessian H the loss is tr(E H E^T); half its slope is E H.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from mcpmq.grids import GRIDS
from mcpmq.grids.levels import Levels, has_kernels
from mcpmq.grids.limits import range_factor
from mcpmq.rounding.hessian import OrderedHessian, ShrunkHessian, damp
from mcpmq.scheme import GridScheme

LEAF_COLUMNS = 32  # that are improved one at a time
BLOCK_COLUMNS = 128  # between products with the whole Hessian
MAX_GROUP_COLUMNS = 256  # of which the scale is adjusted; that of a long row hardly changes


@dataclass(frozen=True, slots=True)
class _Descent:
    """The state of some rows, float32 [columns, rows] with columns in the order of the descent where nothing is given.

    units: values over their scale, without offset. slope: half the slope of the loss at the start. change: of the
    values since the start.
    """

    hessian: ShrunkHessian
    groups: list[int]  # of every column
    scale: Tensor  # [groups, rows]
    units: Tensor
    slope: Tensor
    change: Tensor
    adjust_scales: bool
    levels: Levels
    runs: tuple[Tensor, Tensor] | None  # for the kernel of a GPU; see `_column_runs`

    def improve_block(self, block: slice, is_first_sweep: bool) -> None:
        """Improve consecutive columns; a row keeps its codes and scales if its loss does not get smaller."""
        hessian, changed = self.hessian, slice(block.start if is_first_sweep else None)
        slope = self.slope[block].addcmul(hessian.diagonal_part[block, None], self.change[block])
        slope.addmm_(hessian.hessian.matrix[block, changed], self.change[changed], alpha=hessian.factor)
        if self.runs is not None:
            self._improve_on_gpu(block, slope, *self.runs)
            return
        corner = hessian.corner(block)
        groups, per_column = torch.unique(torch.tensor(self.groups[block]), return_inverse=True)
        units, scale = self.units[block].clone(), self.scale[groups]
        self._improve_groups(block, slope.clone(), corner)
        change = self.units[block] * self.scale[groups][per_column] - units * scale[per_column]
        better = (corner @ change).add_(slope, alpha=2).mul_(change).sum(0) < 0
        self.units[block] = torch.where(better, self.units[block], units)
        self.scale[groups] = torch.where(better, self.scale[groups], scale)
        self.change[block] += change.mul_(better)

    def _improve_on_gpu(self, block: slice, slope: Tensor, groups: Tensor, sizes: Tensor) -> None:
        from mcpmq.grids.gpu.columns import improve_columns  # needs the CUDA build of torch

        hessian, levels = self.hessian, self.levels
        improve_columns(
            *(hessian.hessian.corner(block), hessian.factor, hessian.diagonal_part[block], slope),
            *(self.units[block], self.scale, self.change[block], groups[block], sizes[block]),
            *(levels.unit_bounds, levels.table, self.adjust_scales),
        )

    def _improve_groups(self, block: slice, slope: Tensor, corner: Tensor) -> None:
        start = block.start
        for group, members in groupby(self.groups[block]):
            part = slice(start, start + len(list(members)))
            if self.adjust_scales:
                own = slice(part.start - block.start, part.stop - block.start)
                self._adjust_scale(group, self.units[part], slope, corner[:, own], own)
            for start in range(part.start, part.stop, LEAF_COLUMNS):
                leaf = slice(start, min(start + LEAF_COLUMNS, part.stop))
                first, last = leaf.start - block.start, leaf.stop - block.start
                improve = self._improve_codes if self.levels.vectors is None else self._improve_vectors
                improve(group, self.units[leaf], slope[first:], corner[first:, first:last])
            start = part.stop

    def _adjust_scale(self, group: int, units: Tensor, slope: Tensor, corner: Tensor, own: slice) -> None:
        """Give a group the scale with the least loss; `corner` is float32 [columns of the block, columns]."""
        products, scale = corner @ units, self.scale[group]
        curvature, gain = (products[own] * units).sum(0), (slope[own] * units).sum(0)
        best = scale - gain / torch.where(curvature > 0, curvature, torch.inf)
        rounded = best.half().float()
        better = ((rounded - best).abs() < (scale - best).abs()) & (rounded != 0) & rounded.isfinite()
        change = torch.where(better, rounded - scale, 0)
        slope.addcmul_(products, change)
        self.scale[group] += change

    def _improve_codes(self, group: int, units: Tensor, slope: Tensor, corner: Tensor) -> None:
        """Give each column of a leaf its best code; `slope` [columns, rows] and `corner` begin with the leaf."""
        count, scale = len(units), self.scale[group]
        unit_slope = slope[:count] / torch.where(scale == 0, 1, scale)
        changes = torch.empty_like(unit_slope)
        if has_kernels(units):
            self.levels.improve_columns(group, corner[:count], units, unit_slope, changes)
        else:
            self._improve_columns(group, corner[:count], units, unit_slope, changes)
        slope[count:].addmm_(corner[count:], changes.mul_(scale))

    def _improve_columns(self, group: int, corner: Tensor, units: Tensor, unit_slope: Tensor, changes: Tensor) -> None:
        steps, lower = (1 / corner.diagonal()).tolist(), corner.tril(-1).T.contiguous()
        columns = zip(steps, units.unbind(), unit_slope.unbind(), changes.unbind(), lower.unbind(), strict=True)
        for index, (step, unit, own_slope, change, others) in enumerate(columns):
            rounded = self.levels.round_units(group, torch.sub(unit, own_slope, alpha=step))
            torch.sub(rounded, unit, out=change)
            unit.copy_(rounded)
            unit_slope[index + 1 :].addr_(others[index + 1 :], change)

    def _improve_vectors(self, group: int, units: Tensor, slope: Tensor, corner: Tensor) -> None:
        """Give the columns of each vector of a leaf their codes, as `_improve_codes`."""
        count, scale, size = len(units), self.scale[group], self.levels.vector_columns
        unit_slope, before = slope[:count] / torch.where(scale == 0, 1, scale), units.clone()
        for start in range(0, count, size):
            own, later = slice(start, start + size), slice(start + size, count)
            metric = corner[own, own]
            targets = units[own] - torch.linalg.solve(metric, unit_slope[own])
            units[own] = self.levels.nearest_vectors(targets, metric)
            unit_slope[later].addmm_(corner[later, own], units[own] - before[own])
        slope[count:].addmm_(corner[count:], (units - before).mul_(scale))


def vector_order(energy: Tensor, vector_columns: int) -> Tensor:
    """Return the columns by decreasing energy, int64 [columns]; those of a vector stay together, by their sum."""
    order = energy.reshape(-1, vector_columns).sum(1).argsort(descending=True, stable=True)
    return (order[:, None] * vector_columns + torch.arange(vector_columns, device=order.device)).flatten()


def order_hessian(
    gram: Tensor, scheme: GridScheme, pool: Executor, overwrite: bool = False, energy: Tensor | None = None
) -> OrderedHessian:
    """Return the Hessian X^T X, float32 [columns, columns], in the order of the descent on a scheme.

    It is a copy, or on the CPU with `overwrite` in the memory of `gram`, where no column is padding. `energy`, float32
    [columns], orders the columns; by default it is the diagonal.

    Raises:
        DatasetError: all inputs were zero, or one was not finite.
    """
    padded = scheme.padded_columns(len(gram))
    scale_columns = GRIDS[type(scheme)].scale_columns(padded, scheme)
    strengths = torch.nn.functional.pad(gram.diagonal() if energy is None else energy, (0, padded - len(gram)))
    order = _order_columns(scale_columns, scheme.vector_columns, strengths * range_factor(strengths))
    return OrderedHessian.create(gram, order, pool, overwrite)


def _order_columns(scale_columns: int, vector_columns: int, energy: Tensor) -> Tensor:
    """Return the order of the descent: the strongest group first, and in it the strongest column first."""
    energy = damp(energy, energy)
    groups = torch.arange(len(energy), device=energy.device) // scale_columns
    totals = torch.zeros(int(groups[-1]) + 1, device=energy.device).index_add_(0, groups, energy)
    ranks = totals.argsort(descending=True, stable=True).argsort()
    order = vector_order(energy, vector_columns)
    return order[ranks[groups[order]].argsort(stable=True)]


def descend(codes: Tensor, levels: Levels, slope: Tensor, hessian: ShrunkHessian, sweeps: int) -> tuple[Tensor, Tensor]:
    """Improve rounded rows: codes uint8 and slope float32, [padded columns, rows]; return codes and scales.

    hessian: from `order_hessian`; a sweep after the first one needs the entries above its diagonal. slope: the Hessian
    times the error of the values. Scales are float32 [groups, rows]; they change only on grids with fp16 scales.
    """
    order = hessian.hessian.order
    adjust = levels.has_fp16_scales and levels.groups.count(0) <= MAX_GROUP_COLUMNS
    units = levels.units(codes).index_select(0, order)
    groups = [levels.groups[column] for column in order.tolist()]
    blocks = _blocks([len(list(members)) for _, members in groupby(groups)])
    runs = _column_runs(groups, blocks, units.device) if _has_gpu_kernel(units, levels) else None
    state = _Descent(
        *(hessian, groups, levels.scale.clone(), units, slope.index_select(0, order), torch.zeros_like(units)),
        *(adjust, levels, runs),
    )
    for sweep in range(sweeps):
        for block in blocks:
            state.improve_block(block, sweep == 0)
    return levels.codes(state.units.index_select(0, order.argsort())), state.scale


def _has_gpu_kernel(units: Tensor, levels: Levels) -> bool:
    return units.is_cuda and units.dtype == torch.float32 and levels.vectors is None


def _column_runs(groups: Sequence[int], blocks: Sequence[slice], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the group of every column, and the columns of a group in its block at the first of them, else 0: int32."""
    runs = [len(list(members)) for block in blocks for _, members in groupby(groups[block])]
    sizes = [size for run in runs for size in (run, *[0] * (run - 1))]
    both = torch.tensor([groups, sizes], dtype=torch.int32).to(device)
    return both[0], both[1]


def _blocks(sizes: Sequence[int]) -> list[slice]:
    """Return consecutive columns that are improved together, from the sizes of the groups.

    A block has whole groups, unless a group is too long to adjust its scale.
    """
    if max(sizes) > MAX_GROUP_COLUMNS:
        sizes = [1] * sum(sizes)
    blocks, start, stop = [], 0, 0
    for size in sizes:
        if stop > start and stop + size - start > BLOCK_COLUMNS:
            blocks.append(slice(start, stop))
            start = stop
        stop += size
    return [*blocks, slice(start, stop)]
