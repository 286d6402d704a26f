"""Cholesky factor of the damped Hessian of a layer's inputs, as GPTQ and LDLQ use it (arXiv 2307.13304)."""

import warnings
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mcpmq.errors import DatasetError
from mcpmq.grids.limits import range_factor

TILE_COLUMNS = 512  # of any number of threads: the same products give the same factor
UNUSED_ENERGY = 1e-6  # of the mean: of padding, and of columns whose inputs were all zero
LARGER_SHRINKAGES = (0.03, 0.1, 0.3, 0.5)  # if the factorization fails
DAMPING = 0.01  # of the mean diagonal, added to it as in GPTQ


class ShrinkageWarning(UserWarning):
    """A Hessian needed more shrinkage than was chosen."""


@dataclass(frozen=True, slots=True)
class LdlFactor:
    """The damped Hessian, with columns in the order of rounding, is unit_upper @ diag(pivots) @ unit_upper.T.

    unit_upper: float32 [columns, columns] with a unit diagonal; entries below the diagonal are undefined.
    pivots: float32 [columns], the loss of a unit error in a column if all later columns compensate it.
    Both are of the Hessian times a power of two if its diagonal is far from 1.
    shrinkage: of the entries off the diagonal.
    """

    unit_upper: Tensor
    pivots: Tensor
    shrinkage: float

    def multiply(self, rows: Tensor) -> Tensor:
        """Return unit_upper @ diag(pivots) @ rows, float32 [columns, rows]."""
        scaled = rows * self.pivots[:, None]
        product = scaled.clone()
        for start in range(0, len(rows), TILE_COLUMNS):
            stop = start + TILE_COLUMNS
            tile = product[start:stop].addmm_(self.unit_upper[start:stop, start:stop].triu(1), scaled[start:stop])
            tile.addmm_(self.unit_upper[start:stop, stop:], scaled[stop:])
        return product


def shrunk_cholesky(gram: Tensor, order: Tensor, shrinkage: float, pool: Executor) -> LdlFactor:
    """Factor the Hessian X^T X, float32 [n, n], with its columns in `order`; columns from n on are padding.

    Needs the memory of a second such matrix. A column whose inputs were all zero is independent of the others. Entries
    off the diagonal are multiplied by 1 - shrinkage, and by less if the factorization fails in float32.

    Raises:
        DatasetError: all inputs were zero, one was not finite, or no shrinkage suffices.
    """
    diagonal = gram.diagonal()
    if not diagonal.isfinite().all() or not diagonal.any():
        raise DatasetError("the calibration inputs of a weight are all zero or not finite", "use other samples")
    for used in (shrinkage, *(larger for larger in LARGER_SHRINKAGES if larger > shrinkage)):
        matrix = _shrunk(gram, order, used)
        if not _factor_in_place(matrix, pool):
            continue
        if used != shrinkage:
            text = f"a Hessian of {len(gram):,} columns needed shrinkage by {used}"
            warnings.warn(text, ShrinkageWarning, stacklevel=2)
        roots = matrix.diagonal().clone()
        return LdlFactor(matrix.div_(roots), roots.square_(), used)
    raise DatasetError(
        f"a Hessian of {len(gram):,} columns is not positive definite even with shrinkage by {used}",
        "use more samples",
    )


def damp(diagonal: Tensor, energy: Tensor) -> Tensor:
    """Return a diagonal plus the damping for columns of this energy; unused columns count hardly at all."""
    mean = energy[energy > 0].mean()
    return torch.where(energy > 0, diagonal + DAMPING * mean, UNUSED_ENERGY * mean)


def _shrunk(gram: Tensor, order: Tensor, shrinkage: float) -> Tensor:
    matrix, columns = gram.new_zeros(len(order), len(order)), order[: len(gram)]
    tiles = torch.split(matrix[: len(gram)], TILE_COLUMNS), torch.split(columns, TILE_COLUMNS)
    for rows, tile in zip(*tiles, strict=True):  # by tiles: indexing the whole matrix needs the memory of another copy
        rows[:, : len(gram)] = gram[tile].index_select(1, columns)
    if (factor := range_factor(gram.diagonal())) != 1:
        matrix.mul_(factor)
    diagonal = matrix.diagonal()
    energy = diagonal.clone()
    matrix.mul_(1 - shrinkage)
    diagonal.copy_(damp(energy, energy))
    return matrix


def _factor_in_place(matrix: Tensor, pool: Executor) -> bool:
    """Replace a matrix by the upper triangle R of R @ R.T, from the last tile to the first; False if it fails."""
    tiles = [slice(start, start + TILE_COLUMNS) for start in range(0, len(matrix), TILE_COLUMNS)]
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
