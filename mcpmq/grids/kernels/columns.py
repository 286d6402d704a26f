"""The column loops of LDLQ and of the descent: round a column of all rows, and pass its error or change to later ones.

Arrays are float32 [columns, rows], so that the innermost loops run over rows. Products are not fused with sums: the
results do not depend on the instruction set.
"""

import numpy as np
from numpy.typing import NDArray

from mcpmq.grids.kernels.compiler import Bytes, F, Floats, kernel

Integers = NDArray[np.int64]


@kernel
def count_below(midpoints: Floats, value: F) -> F:
    """Return the code of the nearest value of a table: the number of its midpoints below, the lower code if equal."""
    code = F(0)
    for index in range(len(midpoints)):
        code += F(1) if value > midpoints[index] else F(0)
    return code


@kernel
def add_product(rows: Floats, first: int, factors: Floats, row: Floats) -> None:
    """Add factors [columns] times a row to all rows from `first` on."""
    for column in range(first, len(rows)):
        factor = factors[column]
        for index in range(len(row)):
            rows[column, index] += factor * row[index]


@kernel
def round_columns(
    factors: Floats, residual: Floats, compensated: Floats, codes: Bytes, groups: Integers, grid: Floats, bounds: Floats
) -> None:
    """Round the compensated columns to integers; they get the error of their values, and `residual` theirs.

    factors: [columns, columns], of the error of a column in later ones. groups: of every column. grid: float32
    [groups, 4, rows], divisor, scale, zero point and offset. bounds: lowest and highest code.
    """
    for column in range(len(residual)):
        divisor, scale, zero, offset = grid[groups[column]]
        for row in range(residual.shape[1]):
            target = compensated[column, row]
            step = np.rint((target - offset[row]) / divisor[row]) + zero[row]
            code = min(max(step, bounds[0]), bounds[1])
            value = (code - zero[row]) * scale[row] + offset[row]
            codes[column, row] = np.uint8(code)
            residual[column, row] -= value
            compensated[column, row] = value - target
        add_product(compensated, column + 1, factors[column], residual[column])


@kernel
def round_columns_to_table(
    factors: Floats, residual: Floats, compensated: Floats, codes: Bytes, groups: Integers, grid: Floats, table: Floats
) -> None:
    """Round columns as `round_columns`, to the values of an ascending table times the scale."""
    midpoints = (table[1:] + table[:-1]) / F(2)
    for column in range(len(residual)):
        divisor, scale = grid[groups[column], 0], grid[groups[column], 1]
        for row in range(residual.shape[1]):
            target = compensated[column, row]
            code = count_below(midpoints, target / divisor[row])
            value = table[np.int64(code)] * scale[row]
            codes[column, row] = np.uint8(code)
            residual[column, row] -= value
            compensated[column, row] = value - target
        add_product(compensated, column + 1, factors[column], residual[column])


@kernel
def improve_columns(corner: Floats, units: Floats, slope: Floats, changes: Floats, low: Floats, high: Floats) -> None:
    """Give each column the integers [rows] from `low` to `high` with the least loss; `changes` gets the differences.

    corner: the Hessian of the columns. slope: half the slope of the loss over the scale, updated for later columns.
    """
    for column in range(len(units)):
        step = F(1) / corner[column, column]
        for row in range(units.shape[1]):
            rounded = min(max(np.rint(units[column, row] - step * slope[column, row]), low[row]), high[row])
            changes[column, row] = rounded - units[column, row]
            units[column, row] = rounded
        add_product(slope, column + 1, corner[:, column], changes[column])


@kernel
def improve_columns_in_table(corner: Floats, units: Floats, slope: Floats, changes: Floats, table: Floats) -> None:
    """Improve columns as `improve_columns`, with the values of an ascending table."""
    midpoints = (table[1:] + table[:-1]) / F(2)
    for column in range(len(units)):
        step = F(1) / corner[column, column]
        for row in range(units.shape[1]):
            code = count_below(midpoints, units[column, row] - step * slope[column, row])
            rounded = table[np.int64(code)]
            changes[column, row] = rounded - units[column, row]
            units[column, row] = rounded
        add_product(slope, column + 1, corner[:, column], changes[column])
