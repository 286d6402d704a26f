"""Position tables for llama.cpp, which indexes patch positions on a 70x70 grid and adds no positions to queries.

MiniCPM-V 2.0 interpolates its patch positions and adds positions to queries; MiniCPM-V 2.5 numbers patches in one
sequence. The tables computed here reproduce both exactly for square slices, and approximately for other slices.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import FormatError
from mcpmq.families.timm_siglip import BICUBIC_INNER, BICUBIC_OUTER

if TYPE_CHECKING:  # a forecast needs no torch
    from torch import Tensor

Floats = NDArray[np.float64]

NORM_EPSILON = 1e-6  # of the layer norm of queries
QUERY_SCALE = 1024.0  # makes the epsilon negligible in the norm of the queries
FREE_COLUMN = 1e6  # an unknown with a column this large adds almost nothing to the norm of a solution
MAX_RELATIVE_ERROR = 1e-4  # of a query, relative to the largest value: a fifth of the rounding error of F16


def resample_position_table(table: "Tensor", table_side: int, slice_side: int) -> "Tensor":
    """Resample a position table [1, grid * grid, width] for floor indexing: float64 [table_side ** 2, width].

    The engine reads row and column floor(table_side * i / n) for patch i of n. In a slice of `slice_side` patches a
    side, every patch gets exactly the interpolated position. The other cells hold the same interpolation, at the center
    of a patch of about the same size that falls into the cell.
    """
    values = table[0].double().numpy()
    grid = round(len(values) ** 0.5)
    kernel = _interpolation(_patch_centers(table_side, slice_side), grid, slice_side)
    resampled = np.einsum("ia,jb,abc->ijc", kernel, kernel, values.reshape(grid, grid, -1), optimize=True)
    return table.double().new_tensor(resampled.reshape(table_side * table_side, -1))


def flat_position_rows(table_side: int, slice_side: int) -> tuple[int, ...]:
    """Return the row of a flat position table for every cell of a 2D table: [table_side ** 2].

    The model numbers the patches of a slice in one sequence of `table_side` positions; the engine reads row and column
    floor(table_side * i / n) for patch i of n. In a slice of `slice_side` patches a side, every patch gets exactly its
    position. The other cells hold the position of a patch in their middle.
    """
    cell = np.arange(table_side)
    positions = np.minimum(cell[:, None] + 0.5 + (cell + 0.5) / slice_side, table_side - 1).astype(int)
    patches = np.arange(slice_side)
    cells, numbers = table_side * patches // slice_side, slice_side * patches[:, None] + patches
    positions[np.ix_(cells, cells)] = table_side * numbers // slice_side**2
    return tuple(positions.flatten().tolist())


def _patch_centers(table_side: int, slice_side: int) -> Floats:
    """Return the center of the patch that reads each cell, as a fraction of the slice: [table_side]."""
    centers = np.minimum((np.arange(table_side) + 0.5) / table_side + 0.5 / slice_side, 1 - 0.5 / slice_side)
    patches = np.arange(slice_side)
    centers[table_side * patches // slice_side] = (patches + 0.5) / slice_side
    return centers


def _interpolation(centers: Floats, grid: int, slice_side: int) -> Floats:
    """Return the antialiased bicubic weights of grid cells at each center: [centers, grid]."""
    distance = np.abs(centers[:, None] * grid - (np.arange(grid) + 0.5)) / max(grid / slice_side, 1)
    outer = np.where(distance < 2, np.polyval(BICUBIC_OUTER, distance), 0)
    kernel = np.where(distance < 1, np.polyval(BICUBIC_INNER, distance), outer)
    weights: Floats = kernel / kernel.sum(axis=1, keepdims=True)
    return weights


def fold_position_into_query(query: "Tensor", weight: "Tensor", bias: "Tensor", position: "Tensor") -> "Tensor":
    """Return the queries of `fold_query_positions`."""
    return query.double().new_tensor(fold_query_positions(query, weight, bias, position)[0])


def fold_position_into_norm_weight(weight: "Tensor", query: "Tensor", bias: "Tensor", position: "Tensor") -> "Tensor":
    """Return the norm weight of `fold_query_positions`."""
    return weight.double().new_tensor(fold_query_positions(query, weight, bias, position)[1])


def fold_position_into_norm_bias(bias: "Tensor", query: "Tensor", weight: "Tensor", position: "Tensor") -> "Tensor":
    """Return the norm bias of `fold_query_positions`."""
    return bias.double().new_tensor(fold_query_positions(query, weight, bias, position)[2])


def fold_query_positions(
    query: "Tensor", weight: "Tensor", bias: "Tensor", position: "Tensor"
) -> tuple[Floats, Floats, Floats]:
    """Fold the positions of queries into the queries and their layer norm.

    Return queries [queries, width] and the norm's weight and bias [width] whose norm equals the original norm plus
    positions. The rows z of the target must become rows of equal mean and equal length after an inverse affine map per
    channel. There are more channels than queries, so two linear systems give it: first a scale u near 1 that makes the
    sum of u z equal for all rows, then an offset c with that sum that makes |u z - c| equal for all rows. The second
    system is linear because |u z - c|^2 = |u z|^2 - 2 u z c + |c|^2, and |c|^2 is the same for all rows.

    Raises:
        FormatError: there are too many queries, or two are almost equal.
    """
    target = _layer_norm(_floats(query)) * _floats(weight) + _floats(bias) + _floats(position)
    scale = _equal_sum_scale(target)
    scaled = target * scale
    offset = _equal_length_offset(scaled)
    length = np.sqrt(((scaled - offset) ** 2).mean())
    folded = (scaled - offset) / length * QUERY_SCALE, length / scale, offset / scale
    _check_error(target, *(values.astype(np.float32).astype(np.float64) for values in folded))
    return folded


def _equal_sum_scale(target: Floats) -> Floats:
    rows, width = target.shape
    free = np.full((rows, 1), FREE_COLUMN)  # the common sum is unknown
    return 1 + _min_norm_solution(np.hstack([target, -free]), -target.sum(axis=1) + target.sum() / rows)[:width]


def _equal_length_offset(scaled: Floats) -> Floats:
    rows, width = scaled.shape
    free = np.full((rows, 1), FREE_COLUMN)  # the common length is unknown
    squares, sum_row = (scaled**2).sum(axis=1), np.append(np.ones(width), 0.0)
    right = np.append(squares / 2 - squares.mean() / 2, scaled.sum() / rows)
    return _min_norm_solution(np.vstack([np.hstack([scaled, free]), sum_row]), right)[:width]


def _check_error(target: Floats, query: Floats, weight: Floats, bias: Floats) -> None:
    error = np.abs(_layer_norm(query) * weight + bias - target).max() / np.abs(target).max()
    if not error < MAX_RELATIVE_ERROR:
        raise FormatError(
            f"cannot fold {len(target)} query positions into {target.shape[1]} channels: relative error {error:.1e}"
            f" exceeds {MAX_RELATIVE_ERROR:g}",
            "export to another format: `onnx` adds query positions as the original does",
        )


def _layer_norm(rows: Floats) -> Floats:
    centered = rows - rows.mean(axis=1, keepdims=True)
    normed: Floats = centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + NORM_EPSILON)
    return normed


def _min_norm_solution(matrix: Floats, right: Floats) -> Floats:
    """Solve an underdetermined system with the solution of least norm."""
    return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0], np.float64)


def _floats(tensor: "Tensor") -> Floats:
    values: Floats = tensor.double().numpy()
    return values
