"""The triangular factor of a Gram matrix, which says how the error of one column is made up for in those after it."""

import warnings
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mcpmq.errors import CalibrationError

TILE = 512  # columns; the tiles are the same whatever the number of threads, so the factor is too
DAMPINGS = (0.01, 0.1, 1.0)  # of the mean diagonal: GPTQ's own, and more where float32 cannot factor with that


@dataclass(frozen=True, slots=True)
class Factor:
    """unit @ diag(pivots) @ unit.T is the damped Gram matrix, its columns in the order in which they are rounded.

    `unit` float32 [columns, columns] has ones on its diagonal and counts above it alone; what is below is leftovers.
    `pivots` float32 [columns]: how much an error in a column costs that the columns before it cannot make up for.
    """

    unit: Tensor
    pivots: Tensor


def factored(gram: Tensor, order: Tensor, pool: Executor) -> Factor:
    """Factor a Gram matrix, float32 [n, n], its columns in some order; the last may be columns from n on: padding.

    Needs the memory of one such matrix beside the one given. A column whose inputs were all zero is tied to no other.

    Raises:
        CalibrationError: every input was zero, or one was not finite.
    """
    diagonal = gram.diagonal()
    if not diagonal.isfinite().all() or not diagonal.any():
        raise CalibrationError("the calibration inputs of a weight are all zero, or not finite", "use other samples")
    for damping in DAMPINGS:
        matrix = _damped(gram, order, damping)
        if _factor_in_place(matrix, pool):
            if damping != DAMPINGS[0]:
                warnings.warn(
                    f"a Gram matrix of {len(gram):,} columns was damped by {damping} to be factored", stacklevel=2
                )
            roots = matrix.diagonal().clone()
            return Factor(matrix.div_(roots), roots.square_())
    raise CalibrationError(f"a Gram matrix of {len(gram):,} columns has no factor", "use more samples")


def _damped(gram: Tensor, order: Tensor, damping: float) -> Tensor:
    matrix, seen = gram.new_zeros(len(order), len(order)), order[: len(gram)]
    for rows, part in zip(
        torch.split(matrix[: len(gram)], TILE), torch.split(seen, TILE), strict=True
    ):  # no second copy of it all
        rows[:, : len(gram)] = gram[part].index_select(1, seen)
    diagonal = matrix.diagonal()
    mean = diagonal[diagonal > 0].mean()
    diagonal[diagonal == 0] = mean
    diagonal += damping * mean
    return matrix


def _factor_in_place(matrix: Tensor, pool: Executor) -> bool:
    """The upper triangle R of matrix = R @ R.T, from the last tile to the first; False if there is none."""
    tiles = [slice(start, start + TILE) for start in range(0, len(matrix), TILE)]
    for last in reversed(range(len(tiles))):
        tile = matrix[tiles[last], tiles[last]]
        lower, failed = torch.linalg.cholesky_ex(tile.flip(0, 1))
        if failed:
            return False
        tile.copy_(lower.flip(0, 1))
        for step in (_solve_panel, _subtract_panel):
            list(pool.map(partial(step, matrix, tiles[last]), tiles[:last]))
    return True


def _solve_panel(matrix: Tensor, last: slice, rows: slice) -> None:
    root = matrix[last, last].T.contiguous()
    matrix[rows, last] = torch.linalg.solve_triangular(root, matrix[rows, last], upper=False, left=False)


def _subtract_panel(matrix: Tensor, last: slice, rows: slice) -> None:
    right = slice(rows.start, last.start)
    matrix[rows, right].addmm_(matrix[rows, last], matrix[right, last].T, alpha=-1)
