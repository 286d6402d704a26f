"""Cholesky factor of the damped Hessian of a layer's inputs, as GPTQ and LDLQ use it (arXiv 2307.13304)."""

import warnings
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mcpmq.errors import DatasetError
from mcpmq.rounding.hessian import TILE_COLUMNS, OrderedHessian, damp, tiles

LARGER_SHRINKAGES = (0.03, 0.1, 0.3, 0.5)  # if the factorization fails


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


def shrunk_cholesky(hessian: OrderedHessian, order: Tensor, shrinkage: float, pool: Executor) -> LdlFactor:
    """Factor the Hessian with its columns in `order`, int64 [n].

    The factor takes the place of the entries above the diagonal of the Hessian, so that no second matrix is needed.
    A column whose inputs were all zero is independent of the others. Entries off the diagonal are multiplied by
    1 - shrinkage, and by less if the factorization fails in float32.

    Raises:
        DatasetError: no shrinkage suffices.
    """
    matrix, energy = hessian.matrix, hessian.energy[hessian.order.argsort()[order]]
    for used in (shrinkage, *(larger for larger in LARGER_SHRINKAGES if larger > shrinkage)):
        hessian.write_upper(order, 1 - used, damp(energy, energy), pool)
        if not (_factor_whole(matrix) if matrix.is_cuda else _factor_upper(matrix, pool)):
            continue
        if used != shrinkage:
            text = f"a Hessian of {hessian.columns:,} columns needed shrinkage by {used}"
            warnings.warn(text, ShrinkageWarning, stacklevel=2)
        return LdlFactor(matrix, _divide_by_roots(matrix), used)
    raise DatasetError(
        f"a Hessian of {hessian.columns:,} columns is not positive definite even with shrinkage by {used}",
        "use more samples",
    )


def _divide_by_roots(matrix: Tensor) -> Tensor:
    """Divide the columns of the factor by its diagonal, which becomes 1; return the squares of the diagonal."""
    roots = matrix.diagonal().clone()
    for tile in tiles(len(matrix), TILE_COLUMNS):
        corner = matrix[tile, tile]
        corner.copy_(corner.tril(-1) + (corner / roots[tile]).triu())
        matrix[tile, tile.stop :].div_(roots[tile.stop :])
    return roots.square_()


def _factor_whole(matrix: Tensor) -> bool:
    """Factor as `_factor_upper`, by one call of the library, which fills a GPU; needs the memory of three matrices."""
    lower, failed = torch.linalg.cholesky_ex(matrix.flip(0, 1))  # reads the upper triangle of the matrix
    if failed:
        return False
    matrix.tril_(-1).add_(lower.flip(0, 1).triu_())
    return True


def _factor_upper(matrix: Tensor, pool: Executor) -> bool:
    """Replace the upper triangle, from the last tile to the first, by R of R @ R.T; return False if it fails.

    The entries below the diagonal do not change.
    """
    parts = tiles(len(matrix), TILE_COLUMNS)
    below = [matrix[part, part].tril(-1) for part in parts]
    try:
        return all(_factor_tile(matrix, parts, last, pool) for last in reversed(range(len(parts))))
    finally:
        for part, entries in zip(parts, below, strict=True):
            matrix[part, part] = matrix[part, part].triu() + entries


def _factor_tile(matrix: Tensor, parts: list[slice], last: int, pool: Executor) -> bool:
    tile = matrix[parts[last], parts[last]]
    lower, failed = torch.linalg.cholesky_ex(tile.flip(0, 1))
    if failed:
        return False
    tile.copy_(lower.flip(0, 1))
    for step in (_solve_panel, _subtract_panel):
        list(pool.map(partial(step, matrix, parts[last]), parts[:last]))
    return True


def _solve_panel(matrix: Tensor, last: slice, rows: slice) -> None:
    root = matrix[last, last].T.contiguous()
    matrix[rows, last] = torch.linalg.solve_triangular(root, matrix[rows, last], upper=False, left=False)


def _subtract_panel(matrix: Tensor, last: slice, rows: slice) -> None:
    right = slice(rows.start, last.start)
    matrix[rows, right].addmm_(matrix[rows, last], matrix[right, last].T, alpha=-1)
