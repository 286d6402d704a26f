"""GPTQ (arXiv 2210.17323) on every grid: choose the codes that keep the outputs on the calibration inputs.

The scales of a group are chosen before its first column is rounded and stay the same: integer grids have fp16 scales,
the blocks of ggml have the scales that ggml itself chooses.
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
from mcpmq.rounding.cholesky import LdlFactor, damped_cholesky
from mcpmq.rounding.ldlq import ldlq
from mcpmq.rounding.stats import InputStats, require_stats
from mcpmq.scheme import GridScheme

# Rows per chunk do not depend on the threads: the same matrix products give the same bytes.
CHUNK_ROWS, CHUNK_WEIGHTS = 1024, 1 << 23
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
    with torch.inference_mode(mode=False), thread_pool() as pool:
        padded = scheme.padded_columns(columns)
        energy = torch.nn.functional.pad(stats.gram.diagonal(), (0, padded - columns))
        order = energy.argsort(descending=True, stable=True) if act_order else torch.arange(padded).to(energy.device)
        factor = damped_cholesky(stats.gram, order, pool)
        group_columns = padded if act_order else scheme.group_columns(columns)
        context = GptqContext(scheme, group_columns, order, factor.unit_upper, _importance(factor, energy[order]))
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
    unit_upper: Tensor  # float32 [padded columns, padded columns]
    importance: Tensor  # float32 [padded columns]

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
        self.chosen[first] = grid.choose_grid(values, scheme, importance)
        levels = grid.levels(self.chosen[first], len(compensated), scheme).to(compensated.device)
        order = self.context.order[span] - first
        return replace(levels, groups=[levels.groups[column] for column in order.tolist()])

    def assemble(self, codes: Tensor, columns: int) -> QTensor:
        """Combine codes uint8 [rows, padded columns] with the chosen grids."""
        grids = [self.chosen[first] for first in sorted(self.chosen)]
        quantized: QTensor = self.context.grid.assemble(grids, codes, columns, self.context.scheme)
        return quantized


def _quantize_rows(context: GptqContext, rows: Tensor) -> QTensor:
    grids, order = _GroupGrids(context), context.order
    padding = len(order) - rows.shape[1]
    weight = torch.nn.functional.pad(rows.to(order.device).float(), (0, padding)).T.index_select(0, order)
    codes = ldlq(weight, context.unit_upper, context.group_columns, grids.choose_levels)
    return grids.assemble(codes[order.argsort()].T.contiguous(), rows.shape[1])
