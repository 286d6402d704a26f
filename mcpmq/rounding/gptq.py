"""GPTQ (arXiv 2210.17323) on every grid: choose the codes that keep the outputs on the calibration inputs.

The scales of a group are chosen before its first column is rounded. A descent then improves codes, and scales that are
stored by themselves; in the K-quants, which quantize their scales, only codes.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mcpmq.execution.chunked_matmul import thread_pool
from mcpmq.execution.device import CPU
from mcpmq.grids import GRIDS, Grid
from mcpmq.grids.levels import Levels
from mcpmq.qtensor import QTensor, concat_rows
from mcpmq.rounding.cholesky import LdlFactor, shrunk_cholesky
from mcpmq.rounding.descent import descend, order_hessian, vector_order
from mcpmq.rounding.hessian import ShrunkHessian
from mcpmq.rounding.ldlq import ldlq
from mcpmq.rounding.shrinkage import default_shrinkage
from mcpmq.rounding.stats import InputStats, require_stats
from mcpmq.scheme import GridScheme

# A second sweep of the descent costs as much and gains less than half of the first. It would need another copy of the
# Hessian, because the factor overwrites the entries above the diagonal.
SWEEPS = 1
# Rows per chunk do not depend on the threads: the same matrix products give the same bytes.
CHUNK_ROWS, CHUNK_WEIGHTS = 1024, 1 << 22
DEVICE_CHUNK_WEIGHTS = 1 << 27  # on other devices: columns are sequential, and more rows take hardly more time


def quantize(weight: Tensor, scheme: GridScheme, stats: InputStats | None, act_order: bool = True) -> QTensor:
    """Quantize a weight [rows, columns] with the least error of the layer's outputs on the calibration inputs.

    With `act_order` the columns are rounded by decreasing mean square of their inputs, and all scales are chosen for
    the original weight. Without it they are rounded in order, and the scales of each group or block are chosen for the
    compensated weight when the group is reached. Groups have the same columns either way. The bytes do not depend on
    the threads.

    Raises:
        DatasetError: the statistics are missing or of another layer, or all inputs are zero.
        ScaleError: a scale is too large for fp16.
    """
    rows, columns = weight.shape
    stats = require_stats(stats, columns, "gptq")
    with torch.inference_mode(mode=False), thread_pool(stats.gram.device) as pool:
        hessian = order_hessian(stats.gram, scheme, pool, stats.overwrite)
        energy = hessian.energy[hessian.order.argsort()]
        order = vector_order(energy, scheme.vector_columns) if act_order else hessian.order.sort().values
        shrinkage = default_shrinkage(stats) if stats.shrinkage is None else stats.shrinkage
        factor = shrunk_cholesky(hessian, order, shrinkage, pool)
        group_columns = len(order) if act_order else scheme.group_columns(columns)
        shrunk, importance = ShrunkHessian.create(hessian, factor.shrinkage), _importance(factor, energy[order])
        context = GptqContext(scheme, group_columns, order, factor, importance, shrunk)
        chunks = torch.split(weight, _chunk_rows(columns, energy.device))
        return concat_rows(pool.map(partial(_quantize_rows, context), chunks), rows)


def _importance(factor: LdlFactor, energy: Tensor) -> Tensor:
    """Return the importance of every column for the choice of scales: geometric mean of two measures.

    Either alone gives worse grids: the mean square counts errors that later columns compensate, and the pivot relies on
    the calibration inputs that they do.
    """
    return (factor.pivots * energy).sqrt()


def _chunk_rows(columns: int, device: torch.device) -> int:
    if device != CPU:
        return max(1, DEVICE_CHUNK_WEIGHTS // columns)
    return min(CHUNK_ROWS, max(1, CHUNK_WEIGHTS // columns))


@dataclass(frozen=True, slots=True)
class GptqContext:
    """Everything that is the same for all rows of a weight; tensors are in the order of rounding."""

    scheme: GridScheme
    group_columns: int  # columns whose scales are chosen together
    order: Tensor  # int64 [padded columns]
    factor: LdlFactor
    importance: Tensor  # float32 [padded columns]
    hessian: ShrunkHessian

    @property
    def grid(self) -> Grid:
        return GRIDS[type(self.scheme)]


@dataclass(frozen=True, slots=True)
class _GroupGrids:
    """The grids of some rows: one for every `group_columns` columns, by the first of them."""

    context: GptqContext
    chosen: dict[int, Any] = field(default_factory=dict)

    def choose_levels(self, start: int, compensated: Tensor) -> Levels:
        """Choose the grid of the columns from position `start` in the order of rounding, float32 [columns, rows]."""
        grid, scheme, span = self.context.grid, self.context.scheme, slice(start, start + len(compensated))
        columns, positions = self.context.order[span].sort()
        first = int(columns[0])
        values, importance = compensated[positions].T.contiguous(), self.context.importance[span][positions]
        self.chosen[first] = grid.fit_grid(values, scheme, importance)
        levels = grid.levels(self.chosen[first], len(compensated), scheme).to(compensated.device)
        order = self.context.order[span] - first
        return replace(levels, groups=[levels.groups[column] for column in order.tolist()])

    def concat(self) -> Any:
        """Return the grid of all columns."""
        return self.context.grid.concat([self.chosen[first] for first in sorted(self.chosen)])


def _quantize_rows(context: GptqContext, rows: Tensor) -> QTensor:
    grids, order, scheme = _GroupGrids(context), context.order, context.scheme
    padding = len(order) - rows.shape[1]
    weight = torch.nn.functional.pad(rows.to(order.device).float(), (0, padding)).T.contiguous()
    ordered, factor = weight.index_select(0, order), context.factor
    codes, error = ldlq(ordered, factor.unit_upper, context.group_columns, grids.choose_levels, factor.pivots)
    slope, inverse = factor.multiply(error), order.argsort()
    grid = grids.concat()
    levels = context.grid.levels(grid, len(order), scheme).to(order.device)
    codes, scale = descend(codes[inverse], levels, slope[inverse], context.hessian, SWEEPS)
    grid = context.grid.rescale(grid, scale, scheme)
    quantized: QTensor = context.grid.assemble(grid, codes.T.contiguous(), rows.shape[1], scheme)
    return quantized
