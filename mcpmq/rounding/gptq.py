"""GPTQ on every grid: rounding that keeps the outputs on the calibration inputs, not the weights, as they were.

Method: arXiv 2210.17323. Grids are integers with fp16 scales, or ggml's blocks as its own code fits them; what they may
hold is fixed before a column is rounded on them, and the packed bytes say the same numbers.
"""

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from mcpmq.errors import CalibrationError
from mcpmq.execution.chunked_matmul import workers
from mcpmq.execution.device import CPU
from mcpmq.grids import ggml, integer
from mcpmq.grids.integer import IntegerGrid
from mcpmq.grids.levels import Levels
from mcpmq.qtensor import QTensor
from mcpmq.rounding.cholesky import factored
from mcpmq.rounding.ldlq import sweep
from mcpmq.rounding.stats import LayerStats
from mcpmq.scheme import GgmlScheme, IntegerScheme

# Rows are rounded so many at a time, whatever the number of threads: the same products give the same bytes.
CHUNK_ROWS, CHUNK_WEIGHTS = 1024, 1 << 23
WHOLE_WEIGHTS = 1 << 27  # on other devices: columns come one after another, and more rows hardly take longer


def quantize(
    weight: Tensor, scheme: IntegerScheme | GgmlScheme, stats: LayerStats | None, by_activation: bool = True
) -> QTensor:
    """A weight [rows, columns] on the grid of its scheme, so that its outputs on the calibration inputs stay.

    `by_activation` rounds columns with the largest inputs first; the whole grid is then fitted to the weight as it was.
    Without it columns come in their own order, and each group or block is fitted, when it is reached, to what the
    errors so far have made of it. A group holds the same columns either way. The bytes do not depend on the threads.

    Raises:
        CalibrationError: there are no statistics, they belong to another weight, or hold nothing.
        RecipeError: a value is too large for the grid's fp16 scales.
    """
    rows, columns = weight.shape
    if stats is None or stats.gram.shape != (columns, columns):
        seen = "nothing" if stats is None else f"inputs of {len(stats.gram):,} columns"
        raise CalibrationError(f"`gptq` saw {seen} for a weight of {columns:,} columns", "calibrate this checkpoint")
    width = _group_columns(scheme, columns)
    padded = -(-columns // width) * width if isinstance(scheme, GgmlScheme) else columns
    with torch.inference_mode(mode=False), workers() as pool:
        energy = torch.nn.functional.pad(stats.gram.diagonal(), (0, padded - columns))
        order = energy.argsort(descending=True, stable=True)
        if not by_activation:
            order = torch.arange(padded, device=energy.device)
        factor = factored(stats.gram, order, pool)
        # By either alone the grids are worse: the mean square counts errors that later columns will make up for, the
        # pivot trusts the calibration inputs that they can.
        importance = (factor.pivots * energy[order]).sqrt()
        setting = Setting(scheme, padded if by_activation else width, order, factor.unit, importance)
        chunks = torch.split(weight, _rows_at_a_time(columns, energy.device))
        return QTensor.stacked(pool.map(partial(_rounded, setting), chunks), rows)


def _group_columns(scheme: IntegerScheme | GgmlScheme, columns: int) -> int:
    return scheme.block_columns if isinstance(scheme, GgmlScheme) else scheme.group_size or columns


def _rows_at_a_time(columns: int, device: torch.device) -> int:
    if device != CPU:
        return max(1, WHOLE_WEIGHTS // columns)
    return min(CHUNK_ROWS, max(1, CHUNK_WEIGHTS // columns))


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for all rows of a weight."""

    scheme: IntegerScheme | GgmlScheme
    span: int  # columns that are fitted together
    order: Tensor  # of columns
    unit: Tensor  # of the factor, in that order
    importance: Tensor  # float32, in that order


@dataclass(frozen=True, slots=True)
class _Grids:
    """The grids of some rows: one for every span of columns, by its first column, as they are fitted."""

    setting: Setting
    fitted: dict[int, IntegerGrid | Tensor] = field(default_factory=dict)

    def fit(self, low: int, current: Tensor) -> Levels:
        """Fit the columns that come `low`-th and after in the order, [columns, rows]; the levels in the same order."""
        scheme, span = self.setting.scheme, slice(low, low + len(current))
        columns, back = self.setting.order[span].sort()
        first = int(columns[0])
        values, importance = current[back].T.contiguous(), self.setting.importance[span][back]
        if isinstance(scheme, IntegerScheme):
            grid = self.fitted[first] = integer.fit(values, scheme, importance)
            levels = integer.levels(grid, len(current), scheme)
        else:
            blocks = self.fitted[first] = ggml.round_to(values, scheme, importance).codes
            levels = ggml.levels(blocks, scheme).on(current.device)
        order = self.setting.order[span] - first
        return replace(levels, groups=[levels.groups[column] for column in order.tolist()])

    def hold(self, codes: Tensor, columns: int) -> QTensor:
        """The codes, uint8 [rows, columns and padding], on these grids."""
        parts = [self.fitted[first] for first in sorted(self.fitted)]
        scheme = self.setting.scheme
        if isinstance(scheme, GgmlScheme):
            blocks = torch.cat([part for part in parts if isinstance(part, Tensor)], dim=1)
            return QTensor(scheme, columns, ggml.with_codes(blocks, codes, scheme))
        grids = [part for part in parts if isinstance(part, IntegerGrid)]
        whole = IntegerGrid(torch.cat([grid.scale for grid in grids], 1), torch.cat([grid.zero for grid in grids], 1))
        return integer.with_codes(codes, whole, scheme)


def _rounded(setting: Setting, rows: Tensor) -> QTensor:
    grids, order = _Grids(setting), setting.order
    padding = len(order) - rows.shape[1]
    weight = torch.nn.functional.pad(rows.to(order.device).float(), (0, padding)).T.index_select(0, order)
    codes = sweep(weight, setting.unit, setting.span, grids.fit)
    return grids.hold(codes[order.argsort()].T.contiguous(), rows.shape[1])
